"""Requests to stop become a flag; a run that hangs ends with 124."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxpeft.train.interrupt import Interrupt


def run(code):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_raises_the_flag_and_the_old_handler_returns(number):
    before = signal.getsignal(number)
    with Interrupt() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        assert stop.signal == number
    assert signal.getsignal(number) is before


def test_the_second_interrupt_is_a_keyboard_interrupt():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupt() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGTERM
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_without_signals_no_handler_is_touched():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt(signals=()):
        assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_may_use_it():
    seen = []

    def work():
        with Interrupt() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.slow
def test_sigterm_lets_a_process_end_in_order():
    child = run("""
import sys, time
from jaxpeft.train.interrupt import Interrupt
with Interrupt() as stop:
    sys.stdout.write("ready")
    sys.stdout.flush()
    while not stop.requested:
        time.sleep(0.01)
    sys.stdout.write(stop.signal.name)
sys.exit(75)
""")
    assert child.stdout.read(5) == "ready"
    child.terminate()
    assert child.communicate(timeout=30)[0] == "SIGTERM"
    assert child.returncode == 75


@pytest.mark.slow
def test_the_watchdog_ends_a_hang_with_124_and_shows_where():
    child = run("""
import threading, time
from jaxpeft.train.interrupt import Watchdog

def hanging_step():
    time.sleep(60)

watchdog = Watchdog(0.2)
for _ in range(6):
    watchdog.pet()
    time.sleep(0.05)
hanging_step()
""")
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 124
    assert "no progress" in errors
    assert "hanging_step" in errors


@pytest.mark.slow
def test_grace_stop_and_none_let_a_process_live():
    child = run("""
import time
from jaxpeft.train.interrupt import Watchdog
with Watchdog(0.1):
    pass
disabled = Watchdog(None)
disabled.pet(grace=0.1)
watchdog = Watchdog(0.1)
watchdog.pet(grace=60)
time.sleep(0.5)
watchdog.stop()
watchdog.stop()
time.sleep(0.3)
disabled.stop()
""")
    _, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (0, "")


@pytest.mark.slow
def test_a_grace_ends_with_the_next_sign_of_life():
    child = run("""
import time
from jaxpeft.train.interrupt import Watchdog
watchdog = Watchdog(0.1)
watchdog.pet(grace=60)
time.sleep(0.2)
watchdog.pet()
time.sleep(60)
""")
    child.communicate(timeout=30)
    assert child.returncode == 124


@pytest.mark.slow
def test_a_suspended_process_gets_its_time_again():
    child = run("""
import sys, time
from jaxpeft.train.interrupt import Watchdog
watchdog = Watchdog(1.0)
sys.stdout.write("ready")
sys.stdout.flush()
time.sleep(0.5)
time.sleep(0.05)
watchdog.stop()
""")
    assert child.stdout.read(5) == "ready"
    child.send_signal(signal.SIGSTOP)
    time.sleep(2.3)
    child.send_signal(signal.SIGCONT)
    _, errors = child.communicate(timeout=30)
    assert (child.returncode, errors) == (0, "")
