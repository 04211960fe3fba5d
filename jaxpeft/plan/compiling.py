"""A run's step compiled for a target, and what there is to say of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxpeft.assembly.places import check_batches
from jaxpeft.config import RunConfig
from jaxpeft.devices import sharding
from jaxpeft.devices.targets import Target
from jaxpeft.plan import flops, program_text, vendor
from jaxpeft.plan.largest import Large, largest
from jaxpeft.plan.program_text import Program
from jaxpeft.plan.step import Step
from jaxpeft.plan.vendor import Verdict

LARGEST = 6  # arrays that are named


@dataclass(frozen=True)
class Compiled:
    """What a compiler said of a configuration. Sizes are bytes on one device.

    Attributes:
        verdict: its own words.
        is_kept: whether they are of an earlier time.
        kind: JAX's name for the devices.
        mesh: {axis: devices along it}.
        parameters: how many there are.
        trainable: how many of them train.
        kept: what the step is given, by kind: see `Step.kept`.
        flops: of the matrix products of a step, on all devices together.
    """

    verdict: Verdict
    is_kept: bool
    kind: str
    mesh: dict[str, int]
    parameters: int
    trainable: int
    kept: dict[str, int]
    flops: int

    @property
    def total(self) -> int:
        """The bytes on a device at the fullest moment of a step.

        Of a refused program what the compiler says that it needs.
        """
        beside = "HLO temporaries" in self.verdict.refused
        return self.verdict.total + (sum(self.kept.values()) if beside else 0)

    def fits(self, room: float) -> bool:
        """Whether the compiler took it, and it needs no more than so many bytes."""
        return not self.verdict.refused and self.total <= room

    @cached_property
    def program(self) -> Program:
        """The compiled program, as it can be read; not of a refused one."""
        return program_text.read(self.verdict.text)

    def largest(self) -> list[Large]:
        """The largest arrays that the step makes; of a refused one none are known."""
        return [] if self.verdict.refused else largest(self.program, LARGEST)

    def memory(self) -> dict[str, int]:
        """The parts that make up the total, in words; of a refused program none."""
        if self.verdict.refused:
            return {}
        other = self.verdict.arguments - sum(self.kept.values())
        names = {"optimizer": "optimizer state"}
        return {
            **{names.get(name, name): size for name, size in self.kept.items()},
            "other arguments": max(0, other),  # what tiles leave empty, most of it
            "temporaries": self.verdict.temporaries + self.verdict.results,
            "total": self.total,
        }


def compiled(cfg: RunConfig, target: Target, devices: Sequence[Any]) -> Compiled:
    """What the compiler of a target says of a run's step.

    Sequences have `data.max_length` tokens, as in `planning.plan`.

    Args:
        cfg: the configuration.
        target: what it is for.
        devices: the target's devices.

    Raises:
        InputError: as a run would.
    """
    mesh = sharding.make_mesh(**cfg.mesh.model_dump(), devices=devices)
    check_batches(cfg, mesh)
    step = Step(cfg, mesh, widened=False)
    jaxpr, lowered = step.lower()
    verdict, is_kept = vendor.compiled(lowered, target, vendor.folder())
    return Compiled(
        verdict=verdict,
        is_kept=is_kept,
        kind=devices[0].device_kind,
        mesh=dict(mesh.shape),
        **step.counted(),
        kept=step.kept(),
        flops=flops.count(jaxpr),
    )
