"""SIGTERM ends a process with 75 in time, also where Python cannot look at signals."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxpeft.devices import termination
from jaxpeft.devices.termination import Asked

# A command whose `main` is the test's own; `deaf()` is one call of C for an hour, in
# which Python runs no handler.
CHILD = """
import hashlib, sys, time
from jaxpeft import cli, console
from jaxpeft.devices import termination
from jaxpeft.errors import Preempted

termination.LEAVE, termination.MARGIN = 0.5, 0.5

def deaf():
    console.say("here")
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

def main(argv):
    {body}

code = cli.process(main)
console.say("an orderly end of Python")
sys.exit(code)
"""


def ended(body, *, within):
    """(standard output, standard error) of a child that is asked to end at "here"."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.replace("{body}", "\n    ".join(body))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "here\n"
    child.send_signal(signal.SIGTERM)
    start = time.monotonic()
    out, err = child.communicate(timeout=30)
    assert child.returncode == 75, err
    assert time.monotonic() - start < within
    assert "Traceback" not in err
    return out, err


def test_where_nothing_is_lost_the_command_leaves_in_order():
    body = ["try: console.say('here'); time.sleep(60)"]
    body += ["except Exception: console.say('swallowed')"]
    body += ["finally: console.say('tidied')"]
    out, err = ended(body, within=2)
    assert out == "tidied\n"
    assert err.startswith("warning: SIGTERM received: nothing was left to save")


def test_a_call_that_hears_no_signals_is_cut_short():
    out, err = ended(["deaf()"], within=3)
    assert out == "" and "nothing was left to save; repeat the command" in err


def test_what_is_held_is_saved_while_a_call_goes_on():
    body = ["with termination.holding(30):"]
    body += ["    try: termination.in_background(deaf)"]
    body += ["    except termination.Asked as asked:"]
    body += ["        raise Preempted(f'{asked.name}: saved')"]
    out, err = ended(body, within=2)
    assert (out, err) == ("", "warning: SIGTERM: saved\n")


@pytest.mark.slow
def test_what_does_not_come_to_an_end_within_its_grace_is_given_up():
    out, err = ended(["with termination.holding(1.5): deaf()"], within=4)
    assert out == "" and "longer than the 1.5 s of training.termination_grace" in err


def test_a_held_request_waits_for_a_place_where_it_can_be_met():
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with termination.listening():
        termination.check()  # nobody has asked
        with pytest.raises(Asked), termination.holding(60):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(Asked, match="SIGTERM"):
                termination.check()
    assert before == [signal.getsignal(number) for number in numbers]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_is_met_at_the_end_of_what_is_held(number):
    with termination.listening():
        with pytest.raises(Asked, match=number.name), termination.holding(60):
            signal.raise_signal(number)
        with pytest.raises(Asked, match=number.name):
            termination.check()


def test_the_second_interrupt_is_a_keyboard_interrupt():
    with (
        termination.listening(),
        pytest.raises(KeyboardInterrupt),
        termination.holding(60),
    ):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


def test_a_failure_in_the_background_is_the_callers():
    def fail():
        raise TimeoutError("of its own")

    with (
        termination.listening(),
        termination.holding(60),
        pytest.raises(TimeoutError, match="of its own"),
    ):
        termination.in_background(fail)


def test_another_thread_may_use_it():
    seen = []

    def work():
        with termination.listening(), termination.holding(60):
            termination.check()
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


class Peers:
    """Other processes of which one is asked; all agree on the third question."""

    def __init__(self):
        self.questions = 0

    def noticed(self):
        return True

    def preempted(self):
        self.questions += 1
        return self.questions == 3

    def meet(self, seconds):
        raise AssertionError("they end by themselves")


def test_several_processes_stop_at_the_question_that_they_agree_on():
    before = signal.getsignal(signal.SIGTERM)
    peers = Peers()
    with termination.listening(), termination.holding(60):
        termination.join(peers)
        termination.check()
        # Another process may have gone past this one: it is not left behind.
        assert termination.in_background(os.getpid) == os.getpid()
        with pytest.raises(Asked, match="SIGTERM"):
            termination.check()
        assert peers.questions == 3
        termination._listener.signal = None
    assert signal.getsignal(signal.SIGTERM) != before  # JAX's must not be displaced
    signal.signal(signal.SIGTERM, before)


class Finalized:
    """Is asked to end while Python lets go of it, where nothing can be raised."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass


def test_a_request_that_meets_a_finalizer_is_not_lost(capfd):
    with termination.listening(), pytest.raises(Asked, match="SIGTERM"):
        held = Finalized()
        del held
        time.sleep(10)
    assert "Traceback" not in capfd.readouterr().err
