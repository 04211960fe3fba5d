"""A run's step compiled for a target, and what there is to say of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxpeft import hardware
from jaxpeft.assembly.places import check_batches
from jaxpeft.config import RunConfig
from jaxpeft.devices import sharding, shipped
from jaxpeft.devices.topologies import Topology
from jaxpeft.models import ModelConfig
from jaxpeft.plan import flops, program_text, vendor
from jaxpeft.plan.estimate import Estimate, estimate
from jaxpeft.plan.largest import Large, largest
from jaxpeft.plan.program_text import Program
from jaxpeft.plan.search import Formula
from jaxpeft.plan.step import Step
from jaxpeft.plan.vendor import Verdict

LARGEST = 6  # arrays that are named


@dataclass(frozen=True)
class Compiled:
    """What a compiler said of a configuration. Sizes are bytes on one device.

    Attributes:
        verdict: its own words.
        is_kept: whether they are of an earlier time.
        target: what it was compiled for.
        mesh: {axis: devices along it}.
        parameters: how many there are.
        trainable: how many of them train.
        kept: what the step is given, by kind: see `Step.kept`.
        flops: of the matrix products of a step, on all devices together.
        tokens: of a step's batch, on all devices together.
        needed: the floating-point operations that its training takes, at the least:
            what MFU counts.
        model: of the run.
    """

    verdict: Verdict
    is_kept: bool
    target: hardware.Target
    mesh: dict[str, int]
    parameters: int
    trainable: int
    kept: dict[str, int]
    flops: int
    tokens: int
    needed: int
    model: ModelConfig

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
        """What takes the most at the fullest moment; of a refused one not known."""
        return [] if self.verdict.refused else largest(self.program, LARGEST)

    @cached_property
    def estimate(self) -> Estimate | None:
        """What a step costs; None of a refused one, or where no peaks are known."""
        if self.verdict.refused:
            return None
        return estimate(self.program, self.target)

    @property
    def seconds(self) -> float:
        """Of a step, estimated; infinite where that is not known."""
        return self.estimate.seconds if self.estimate else math.inf

    @property
    def speed(self) -> float:
        """The tokens in a second on all devices, estimated; 0: not known."""
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float:
        """The share of the devices' peak in bfloat16 that this is, as a log has it."""
        device = self.target.device
        if not self.estimate or device is None or not device.in_16_bits:
            return 0.0
        peak = self.target.count * device.in_16_bits
        return self.needed / (self.estimate.seconds * peak)

    def formula(self, cfg: RunConfig) -> Formula:
        """What ranks other ways to run this step, before they are compiled.

        Args:
            cfg: the configuration that was compiled.
        """
        model, axes = self.model, ("fsdp", sharding.CONTEXT, "tensor")
        parts = sharding.parts_of(self.mesh, axes)
        again = {"none": 1.0, "dots": 1.2, "full": 1.5}[cfg.model.remat]
        is_coded, parameters = cfg.model.quantization != "none", self.parameters
        heads = model.num_attention_heads + 2 * model.num_key_value_heads
        return Formula(
            device=self.target.device or hardware.Device(0),
            count=self.target.count,
            weights=parts * (sum(self.kept.values()) - self.kept["batch"]),
            sent=parts * self.kept["weights"],
            read=parts * self.kept["weights"] + (5 if is_coded else 0) * parameters,
            flops=self.flops / again,
            sequences=cfg.training.batch_size,
            length=cfg.data.max_length,
            hidden=model.hidden_size,
            wide=3 * model.intermediate_size + heads * model.head_dim,
            layers=model.num_hidden_layers,
        )

    def on_the_host(self) -> dict[str, int]:
        """The parts of the host's memory that each device has, in words; {}: none."""
        verdict = self.verdict
        parts = {
            "given": verdict.host_arguments,
            "activations": verdict.host_temporaries,
            "total": verdict.host_arguments + verdict.host_temporaries,
        }
        return {name: size for name, size in parts.items() if size}

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


def saved(
    cfg: RunConfig, target: Topology, devices: Sequence[Any], path: Path
) -> Compiled:
    """`compiled`, and the program in a file: see `shipped.saving`.

    Args:
        cfg: see `compiled`.
        target: see `compiled`.
        devices: see `compiled`.
        path: of the file.

    Raises:
        InputError: as a run would, or the file cannot be written.
    """
    with shipped.saving(path, devices):
        return compiled(cfg, target, devices, anew=True)


def compiled(
    cfg: RunConfig, target: Topology, devices: Sequence[Any], anew: bool = False
) -> Compiled:
    """What the compiler of a target says of a run's step.

    Sequences have `data.max_length` tokens, as in `planning.plan`.

    Args:
        cfg: the configuration.
        target: what it is for.
        devices: the target's devices.
        anew: whether the compiler is asked, whatever it said before.

    Raises:
        InputError: as a run would.
    """
    mesh = sharding.make_mesh(**cfg.mesh.model_dump(), devices=devices)
    check_batches(cfg, mesh)
    step = Step(cfg, mesh, widened=False)
    jaxpr, lowered = step.lower()
    verdict, is_kept = vendor.compiled(
        lowered, target, None if anew else vendor.folder()
    )
    tokens = cfg.training.batch_size * cfg.data.max_length
    return Compiled(
        verdict=verdict,
        is_kept=is_kept,
        target=hardware.of_mesh(mesh),
        mesh=dict(mesh.shape),
        **step.counted(),
        kept=step.kept(),
        flops=flops.count(jaxpr),
        tokens=tokens,
        needed=tokens * step.per_token(),
        model=step.model,
    )
