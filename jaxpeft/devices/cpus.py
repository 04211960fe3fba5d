"""CPU devices that stand in for a pod: enough threads that none waits for ever.

XLA gives a CPU's devices one thread each, or one a core. A device that waits in two
collectives at once, of two loops that do not need each other, holds two: with as many
threads as devices another finds none to meet it with, and after 40 s XLA ends the
process ("This thread has been waiting for ... and may be stuck"). It is rare, and seen
on a busy machine.
"""

import os
import re

# Read by XLA as JAX first looks for devices.
VARIABLE = "PJRT_NPROC"
THREADS = 4  # a device: for the collectives that it may wait in at the same time
FLAG = "--xla_force_host_platform_device_count="


def give_threads() -> None:
    """Gives CPU devices that the environment asks for four threads each.

    It is called before JAX looks for devices; what the user set for XLA stays.
    """
    count = asked_for()
    if count > 1:
        threads = max(os.cpu_count() or 1, THREADS * count)
        os.environ.setdefault(VARIABLE, str(threads))


def asked_for() -> int:
    """How many CPU devices XLA_FLAGS or JAX_NUM_CPU_DEVICES ask for; 1: none."""
    found = re.findall(rf"{FLAG}(\d+)", os.environ.get("XLA_FLAGS", ""))
    said = os.environ.get("JAX_NUM_CPU_DEVICES", "")
    return max(int(found[-1]) if found else 1, int(said) if said.isdecimal() else 1)
