"""A run that hangs ends with 124, and shows where."""

import signal
import subprocess
import sys
import time

import pytest


def run(code):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_the_watchdog_ends_a_hang_with_124_and_shows_where():
    child = run("""
import threading, time
from jaxpeft.train.watchdog import Watchdog

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
from jaxpeft.train.watchdog import Watchdog
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
from jaxpeft.train.watchdog import Watchdog
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
from jaxpeft.train.watchdog import Watchdog
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
