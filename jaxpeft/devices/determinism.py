"""Runs that repeat bit for bit on accelerators, too, at some cost in speed.

XLA on a GPU chooses among kernels by timing them and adds up in the order in which
threads arrive; one flag of its own makes it do neither. CPUs and TPUs repeat as they
are. XLA reads its flags once, as JAX first looks for devices.
"""

import os

import jax

from jaxpeft.errors import InputError

XLA_FLAGS = "XLA_FLAGS"
# Leaves out every operation that may differ from run to run, and all autotuning.
FLAG = "--xla_gpu_deterministic_ops"
COUNT = "jax_num_cpu_devices"
OFF = {f"{FLAG}=false", f"{FLAG}=0", f"{FLAG}=False"}


def require() -> None:
    """Makes this process compute the same bits each time it computes the same.

    It is called before anything else of JAX.

    Raises:
        InputError: XLA_FLAGS says the opposite, or devices are in use already and are
            not CPUs, which need nothing.
    """
    flags = os.environ.get(XLA_FLAGS, "").split()
    if against := [flag for flag in flags if flag in OFF]:
        raise InputError(
            f"deterministic: found true, and the environment's XLA_FLAGS has "
            f"{against[0]}; remove it there, or set deterministic: false"
        )
    if is_required():
        return
    if _in_use():
        if jax.default_backend() == "cpu":
            return
        raise InputError(
            "deterministic: found true, and JAX has its devices already, for which it "
            f"is too late; start the program with XLA_FLAGS={FLAG}=true"
        )
    os.environ[XLA_FLAGS] = " ".join([*flags, f"{FLAG}=true"])


def is_required() -> bool:
    """Whether XLA was told to repeat itself bit for bit, here or by the user."""
    flags = os.environ.get(XLA_FLAGS, "").split()
    return any(flag.split("=")[0] == FLAG and flag not in OFF for flag in flags)


def _in_use() -> bool:
    """Whether JAX has its devices: their number can be set no more."""
    before = getattr(jax.config, COUNT)
    try:
        jax.config.update(COUNT, before + 2)
        jax.config.update(COUNT, before)
    except RuntimeError:
        return True
    return False
