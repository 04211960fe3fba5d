"""Jitted functions that say when they compile, how long it took and what they need."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import jax

from jaxpeft import console
from jaxpeft.devices import gpu_memory, programs, shipped, termination, xla_options


def build(
    function: Callable,
    arguments: tuple,
    *,
    carries: bool,
    mesh: jax.sharding.Mesh | None,
) -> tuple[Any, Any]:
    """Traces and compiles a function for arguments.

    Args:
        function: what `jax.jit` can take.
        arguments: arrays, or shapes in their place; those of the first have shardings
            if `carries`.
        carries: whether the first argument is a state that the first result follows: it
            is donated, and the new one lies where it lay.
        mesh: the devices that activations are split over; None: no mesh is set.

    Returns:
        (jaxpr, compiled program).
    """
    jaxpr, lowered = lower(function, arguments, carries=carries, mesh=mesh)
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    told = xla_options.options(
        lowered,
        device.platform,
        1 if mesh is None else mesh.size,
        gpu_memory.room_of(device),
        carries=carries,
    )
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        return jaxpr, termination.in_background(lambda: lowered.compile(told or None))


def lower(
    function: Callable,
    arguments: tuple,
    *,
    carries: bool,
    mesh: jax.sharding.Mesh | None,
) -> tuple[Any, Any]:
    """Traces a function for arguments, as `build` does before it compiles.

    Args:
        function: see `build`.
        arguments: see `build`.
        carries: see `build`.
        mesh: see `build`; of devices that are not here, too.

    Returns:
        (jaxpr, `jax.stages.Lowered`).
    """
    options: dict[str, Any] = {}
    if carries:
        shardings = jax.tree.map(lambda x: x.sharding, arguments[0])
        options = {"donate_argnums": 0, "out_shardings": (shardings, None)}
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        traced = jax.jit(function, **options).trace(*arguments)
        return traced.jaxpr, traced.lower()


class Compiled:
    """A function compiled once for each shape of its last argument, a batch.

    Args:
        function: see `build`.
        name: what it is called in the report.
        report: called with a line of text at every compilation, or where the program
            was taken from a cache instead.
        carries: see `build`.
        mesh: see `build`.

    Attributes:
        seconds: spent so far compiling, and taking programs from a cache.
    """

    def __init__(
        self,
        function: Callable,
        name: str,
        report: Callable[[str], None],
        carries: bool = False,
        mesh: jax.sharding.Mesh | None = None,
    ):
        self._function, self._carries, self._mesh = function, carries, mesh
        self._name, self._report = name, report
        self._programs: dict[tuple, Any] = {}
        self.seconds = 0.0  # spent compiling so far, and taking from a cache

    def __call__(self, *arguments: Any) -> Any:
        """The function's result; compiles first where the batch's shape is new."""
        shape = arguments[-1]["tokens"].shape
        if shape not in self._programs:
            self._programs[shape] = self._compile(shape, arguments)
        return self._programs[shape](*arguments)

    def is_new(self, batch: dict[str, Any]) -> bool:
        """Whether this batch's shape is still to be compiled."""
        return batch["tokens"].shape not in self._programs

    def _compile(self, shape: tuple[int, ...], arguments: tuple) -> Any:
        start = time.monotonic()
        size = " x ".join(map(str, shape))
        doing = (
            f"compiling the {self._name} for batches of {size}: once for this run, and "
            "later starts find it in the cache of programs"
        )
        with programs.watch() as taken, console.waiting(doing, self._report):
            program = build(
                self._function, arguments, carries=self._carries, mesh=self._mesh
            )[1]
        took = time.monotonic() - start
        self.seconds += took
        memory = program.memory_analysis()
        room = getattr(memory, "temp_size_in_bytes", 0) / 2**20
        verb, once = ("loaded", ", compiled before,") if taken() else ("compiled", "")
        self._report(
            f"{verb} the {self._name} for batches of {size}{once} in {took:.1f} s "
            f"({room:,.0f} MiB of temporaries)"
        )
        if self._carries and not taken():
            shipped.missed(self._report)
        return program
