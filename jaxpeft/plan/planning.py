"""What a run will need, from shapes and the compiled step alone."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import jax

from jaxpeft import kernel
from jaxpeft.assembly.adapter import gives_a_model
from jaxpeft.assembly.places import check_batches
from jaxpeft.config import RunConfig
from jaxpeft.devices import shipped
from jaxpeft.errors import InputError
from jaxpeft.optim import OPTIMIZERS
from jaxpeft.plan import flops
from jaxpeft.plan.collectives import Collective, collectives, totals
from jaxpeft.plan.step import Step


@dataclass(frozen=True)
class Plan:
    """The needs of one training step. Sizes are bytes on one device, the fullest.

    Attributes:
        mesh: {axis: devices along it}.
        parameters: how many parameters there are.
        trainable: how many of them train.
        weights: of what is frozen, or of all that trains in full fine-tuning.
        adapters: of what trains beside frozen weights.
        optimizer: of the optimizer's state.
        batch: of its tokens and masks.
        activations: kept from the forward for the backward pass.
        temporaries: everything else that a step needs, gradients too.
        flops: of the matrix products of a step, on all devices together.
        sent: {kind of collective: bytes that a device sends in a step}.
        simulated: whether it was compiled for devices that are not there.
        whole: the weights that no axis of the mesh divides, though one was meant to.
        collectives: the collective operations of the step.
        on_the_host: of what it is given in the memory of the device's host, which no
            other number counts.
    """

    mesh: dict[str, int]
    parameters: int
    trainable: int
    weights: int
    adapters: int
    optimizer: int
    batch: int
    activations: int
    temporaries: int
    flops: int
    sent: dict[str, float]
    simulated: bool
    whole: tuple[str, ...]
    collectives: list[Collective] = field(default_factory=list, repr=False)
    on_the_host: int = 0

    @property
    def devices(self) -> int:
        """The number of devices that take part."""
        return math.prod(self.mesh.values())

    @property
    def kept(self) -> int:
        """The bytes on a device between two steps."""
        return self.weights + self.adapters + self.optimizer

    @property
    def total(self) -> int:
        """The bytes on a device at the fullest moment of a step."""
        return self.kept + self.batch + self.activations + self.temporaries

    def fits(self, room: float) -> bool:
        """Whether it needs no more than so many bytes of a device."""
        return self.total <= room


def plan(
    cfg: RunConfig, mesh: jax.sharding.Mesh, *, simulated: bool, like: str = "cpu"
) -> Plan:
    """The plan of a run on the devices of a mesh; nothing is read but `config.json`.

    Sequences have `data.max_length` tokens: shorter ones need less.

    Args:
        cfg: the configuration.
        mesh: the devices.
        simulated: whether the mesh's CPU devices stand for accelerators, which compute
            in the dtype that the configuration names, and CPUs do not; what is compiled
            is then float32 throughout, and activations and temporaries are counted at
            that dtype's size.
        like: what they stand for: "gpu", "tpu" or "cpu".

    Raises:
        InputError: as a run would.
    """
    check_batches(cfg, mesh)
    step = Step(cfg, mesh, widened=simulated and like != "cpu")
    jaxpr, program = step.build()
    memory = program.memory_analysis()
    sends = [_in_its_dtype(one, step.share) for one in collectives(program)]
    activations = step.activations(jaxpr)
    temporaries = max(0, memory.temp_size_in_bytes - activations)
    return Plan(
        mesh=dict(mesh.shape),
        **step.counted(),
        **step.kept(),
        activations=round(activations * step.share),
        temporaries=round(temporaries * step.share),
        flops=flops.count(jaxpr),
        sent=totals(sends),
        simulated=simulated,
        whole=step.whole(),
        collectives=sends,
        on_the_host=step.on_the_host(),
    )


def save(cfg: RunConfig, mesh: jax.sharding.Mesh, path: Path) -> None:
    """Compiles a run's step for devices that are here, and keeps it in a file.

    Args:
        cfg: the configuration; it says how many steps there are, where the step does
            not get them from the data.
        mesh: of devices that are here.
        path: of the file: see `shipped.saving`.

    Raises:
        InputError: as a run would, or the file cannot be written.
    """
    check_batches(cfg, mesh)
    with shipped.saving(path, list(mesh.devices.flat)):
        Step(cfg, mesh, widened=False).build()


def _in_its_dtype(one: Collective, share: float) -> Collective:
    """At the size of the dtype that is computed in.

    Adapters' gradients are float32 whatever the model is: these stay as they are.
    """
    is_adapter = kernel.ADAPTER_GRADIENT in one.name
    return one if is_adapter else one._replace(nbytes=round(one.nbytes * share))


class Sized(Protocol):
    """What a trial of a configuration says of it: `Plan`, or a compiler's word."""

    @property
    def total(self) -> int:
        """The bytes on a device at the fullest moment of a step."""
        ...

    def fits(self, room: float) -> bool:
        """Whether it needs no more than so many bytes of a device."""
        ...


class Advice(NamedTuple):
    """Changes that make a run smaller.

    Attributes:
        overrides: the changes, texts `section.key=value`.
        plan: the plan with all of them.
    """

    overrides: tuple[str, ...]
    plan: Sized


def advise(
    reopen: Callable[[Sequence[str]], RunConfig],
    first: Sized,
    devices: int,
    room: float,
    trial: Callable[[RunConfig], Sized],
) -> Iterator[Advice]:
    """Tries change after change, the cheaper ones first, until the run fits.

    What saves less than 2 % is left out again.

    Args:
        reopen: overrides -> the configuration with them.
        first: what is said of it without any.
        devices: how many there are.
        room: the bytes of a device that the run may take.
        trial: says it of a configuration.

    Yields:
        All changes so far, once for each that is kept.
    """
    best, taken = first, ()
    for change in _changes(reopen(()), devices):
        if best.fits(room):
            return
        try:
            tried = trial(reopen((*taken, *change)))
        except InputError:
            continue  # it does not go together with the rest
        if tried.total < 0.98 * best.total:
            best, taken = tried, (*taken, *change)
            yield Advice(taken, best)


def _changes(cfg: RunConfig, devices: int) -> Iterator[tuple[str, ...]]:
    devices //= max(1, cfg.mesh.context)  # that have sequences of their own
    if cfg.model.remat != "full":
        yield ("model.remat=full",)
    if cfg.mesh.tensor == 1:
        yield ("mesh.data=1", f"mesh.fsdp={devices}")
    parts = cfg.training.batch_size // devices
    if cfg.training.gradient_accumulation_steps < parts:
        yield (f"training.gradient_accumulation_steps={parts}",)
    full, lighter = gives_a_model(cfg.adapter), OPTIMIZERS[cfg.optimizer.name].lighter
    if lighter is not None and full:
        yield (f"optimizer.name={lighter}",)
    if cfg.model.offload in ("none", "activations") and not full:
        both = cfg.model.offload == "activations"
        yield (f"model.offload={'both' if both else 'weights'}",)
    yield (f"data.max_length={cfg.data.max_length // 2}",)
    if full:
        yield ("adapter.method=lora",)
