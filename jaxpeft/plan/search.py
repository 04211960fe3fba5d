"""`plan --search`: the mesh, accumulation and rematerialization with the best speed.

What does not change what is learned is searched: how the devices are divided, in how
many parts a batch goes through them, and what the backward pass computes once more; of
long sequences also over how many devices each is split, and whether an MLP takes them
in tiles. A formula ranks all combinations, fitted to the compiled configuration that
was given; then the compiler is asked, the most promising one first, until no other
promises more than the best that it has taken.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from jaxpeft.config import RunConfig
from jaxpeft.errors import InputError
from jaxpeft.hardware import Device
from jaxpeft.models import ModelConfig

REMATS = ("none", "dots", "full")
# What of the peaks is reached, so that the parts of the formula weigh right.
REACHED = 0.6
MARGIN = 1.15  # how far beyond the room a prediction of memory is still tried
GAIN = 1.02  # what another compilation has to promise
LONG = 2**14  # tokens of a sequence from which on it may be split, and taken in tiles
TILE = 4096
# How many times as long as without tiles a step takes with them: they compute an MLP
# once more, which `full` and `dots` do anyway, and their products are smaller.
TILED = {"none": 1.4, "dots": 1.08, "full": 1.08}


class Trial(Protocol):
    """What a compiler says of a configuration: see `compiling.Compiled`."""

    @property
    def total(self) -> int:
        """The bytes on a device at the fullest moment of a step."""
        ...

    @property
    def seconds(self) -> float:
        """Of a step, estimated; infinite where that is not known."""
        ...

    @property
    def speed(self) -> float:
        """The tokens in a second on all devices, estimated; 0: not known."""
        ...

    def fits(self, room: float) -> bool:
        """Whether it needs no more than so many bytes of a device."""
        ...


@dataclass(frozen=True)
class Candidate:
    """A way to run the same training.

    Attributes:
        data: devices that each have their own sequences and all weights.
        fsdp: over how many devices weights and sequences are split.
        tensor: over how many each layer is.
        parts: that a batch goes through the devices in.
        remat: one of `REMATS`.
        context: over how many each sequence is split, and weights too.
        tile: tokens of a sequence that go through an MLP at a time; None: all.
        is_long: whether `context` is searched, too, and so is named.
    """

    data: int
    fsdp: int
    tensor: int
    parts: int
    remat: str
    context: int = 1
    tile: int | None = None
    is_long: bool = field(default=False, compare=False)

    @property
    def overrides(self) -> tuple[str, ...]:
        """What sets it, texts `section.key=value`."""
        return (
            f"mesh.data={self.data}",
            f"mesh.fsdp={self.fsdp}",
            f"mesh.tensor={self.tensor}",
            *([f"mesh.context={self.context}"] if self.names_context else []),
            f"training.gradient_accumulation_steps={self.parts}",
            f"model.remat={self.remat}",
            *([f"model.tile={self.tile}"] if self.tile is not None else []),
        )

    @property
    def names_context(self) -> bool:
        """Whether its overrides say over how many devices a sequence is split."""
        return self.is_long or self.context > 1

    @property
    def holders(self) -> int:
        """Over how many devices the weights of a layer, or its share, are split."""
        return self.fsdp * self.context

    @property
    def replicas(self) -> int:
        """Over how many devices the tokens of a batch are split."""
        return self.data * self.fsdp * self.context


@dataclass(frozen=True)
class Formula:
    """What a candidate takes, roughly. All sizes are of all devices together.

    Attributes:
        device: one of the devices.
        count: how many there are.
        weights: the bytes that `fsdp` and `tensor` divide: weights, adapters, state.
        sent: bytes of the weights that `fsdp` brings together for a pass.
        read: bytes that a pass moves to and from memory for the weights.
        flops: of a step's products, without what is computed once more.
        sequences: of a step's batch.
        length: of each.
        hidden: the model's width.
        wide: that of its MLP, and of what attention makes, for a token.
        layers: of the model.
        seconds: a factor for the time, fitted.
        kept: a factor for the activations, fitted.
        beside: bytes of a device that everything else takes, fitted; None: not yet.
        slower: {remat: how many times as long as foretold its steps take}.
    """

    device: Device
    count: int
    weights: float
    sent: float
    read: float
    flops: float
    sequences: int
    length: int
    hidden: int
    wide: int
    layers: int
    seconds: float = 1.0
    kept: float = 1.0
    beside: float | None = None
    slower: Mapping[str, float] = field(default_factory=dict)

    def time(self, one: Candidate) -> float:
        """The seconds of a step.

        Args:
            one: the candidate.
        """
        # Full rematerialization repeats the forward pass: a half of LoRA's products.
        again = {"none": 1.0, "dots": 1.2, "full": 1.5}[one.remat]
        peak, link = self.device.in_16_bits or 1e14, self.device.link or 1e10
        products = self.flops * again / self.count / peak
        # Each part brings the weights together twice, beside the products.
        share = (one.holders - 1) / one.holders
        gathered = 2 * one.parts * self.sent / one.tensor * share / link
        # A layer adds up its activations twice each way, and all wait for that.
        tokens = self.sequences * self.length / one.replicas
        added = 4 * self.layers * tokens * self.hidden * 2
        added *= 2 * (one.tensor - 1) / one.tensor / link
        # Heads are exchanged for parts of sequences four ways, forwards, once more and
        # back; as much of q, k, v and what attention gives as four times the width.
        exchanged = 12 * self.layers * tokens * self.hidden * 2
        exchanged *= (one.context - 1) / one.context / link
        # Weights are read for every part, however few its rows are, and decoded to 16
        # bits before that where they are in few: written and read once more.
        read = 2 * one.parts * self.read / one.tensor / (self.device.bandwidth or 1e12)
        total = max(products, gathered) + read + added + exchanged
        total *= 1.0 if one.tile is None else TILED[one.remat]
        return self.seconds * self.slower.get(one.remat, 1.0) * total / REACHED

    def activations(self, one: Candidate) -> float:
        """The bytes of a device for what a part keeps for its backward pass.

        Args:
            one: the candidate.
        """
        rows = self.sequences / one.parts / one.replicas
        narrow, wide = self.hidden, self.wide / one.tensor
        if one.tile is not None:
            wide *= min(1.0, one.tile * one.context / self.length)
        width = {"none": 3 * narrow + wide, "dots": 2 * narrow + wide / 3}
        kept = self.layers * width.get(one.remat, narrow) + 2 * wide
        return self.kept * rows * self.length * kept * 2

    def memory(self, one: Candidate) -> float:
        """The bytes of a device at the fullest moment.

        Args:
            one: the candidate.
        """
        own = self.weights / (one.holders * one.tensor)
        return own + (self.beside or 0.0) + self.activations(one)

    def fitted(self, one: Candidate, seconds: float, total: int) -> "Formula":
        """The formula that gives what a compiler said of a candidate.

        Args:
            one: the candidate.
            seconds: of its step, estimated; infinite: not known.
            total: the bytes that it needs of a device.
        """
        # More than the activations is at first what is gathered, decoded and added up,
        # about the same in all candidates; what another one needs beyond that it keeps.
        own = self.weights / (one.holders * one.tensor)
        kept = self.activations(one) / self.kept
        rest = max(0.0, total - own - kept)
        beside = rest if self.beside is None else min(self.beside, rest)
        factor = max(0.1, (total - own - beside) / kept)
        fitted = replace(self, kept=factor, beside=beside)
        if not math.isfinite(seconds):
            return fitted
        return replace(fitted, seconds=self.seconds * seconds / self.time(one))

    def corrected(self, one: Candidate, seconds: float, total: int) -> "Formula":
        """The formula after another candidate was compiled.

        One that is slower than foretold says it of what is rematerialized alike, and
        nothing of the others.

        Args:
            one: the candidate.
            seconds: of its step, estimated; infinite: not known.
            total: the bytes that it needs of a device.
        """
        fitted = self.fitted(one, seconds, total)
        ratio = seconds / self.time(one)
        if ratio <= 1 or not math.isfinite(ratio):
            return fitted
        slower = {**self.slower, one.remat: ratio * self.slower.get(one.remat, 1.0)}
        return replace(fitted, seconds=self.seconds, slower=slower)


class Tried(NamedTuple):
    """A candidate that was compiled.

    Attributes:
        candidate: which.
        trial: what its compiler said.
    """

    candidate: Candidate
    trial: Trial


def of_config(cfg: RunConfig, mesh: dict[str, int]) -> Candidate:
    """The candidate that a configuration is.

    Args:
        cfg: the configuration.
        mesh: its mesh, {axis: devices along it}.
    """
    parts = cfg.training.gradient_accumulation_steps
    sizes = mesh["data"], mesh["fsdp"], mesh["tensor"]
    context = mesh.get("context", 1)
    return Candidate(*sizes, parts, cfg.model.remat, context, cfg.model.tile)


def candidates(
    count: int,
    sequences: int,
    model: ModelConfig,
    most: int = 8,
    given: Candidate | None = None,
    length: int = 0,
    *,
    tiles: bool = False,
) -> Iterator[Candidate]:
    """All ways to run a step that divide what they must.

    Args:
        count: of the devices.
        sequences: of a batch.
        model: which says how far `tensor` and `context` can divide.
        most: devices that `tensor` and `context` may go over, those with the fastest
            links.
        given: what the configuration is; of sequences that are not long, its `context`
            stays, and so does a `tile` that it has.
        length: of a sequence, in tokens.
        tiles: whether tiles leave the training as it is, and may be tried.
    """
    context, tile = (1, None) if given is None else (given.context, given.tile)
    is_long = length >= LONG
    contexts, sizes = [context], [tile]
    if is_long:
        contexts = [n for n in _divisors(count, most) if length % n == 0]
        sizes += [TILE] if tiles and tile is None else []
    for split in contexts:
        for data, fsdp, tensor in _meshes(count // split, model, most):
            if split > 1 and model.num_attention_heads % (split * tensor):
                continue
            for parts in _divisors(sequences):
                if sequences // parts % (data * fsdp):
                    continue
                for remat, tile in itertools.product(REMATS, sizes):
                    mesh = data, fsdp, tensor
                    yield Candidate(*mesh, parts, remat, split, tile, is_long)


def _meshes(
    count: int, model: ModelConfig, most: int
) -> Iterator[tuple[int, int, int]]:
    """The ways to divide devices: (data, fsdp, tensor)."""
    for tensor in _divisors(count, most):
        if model.num_key_value_heads % tensor:
            continue
        rest = count // tensor
        for fsdp in _divisors(rest):
            yield rest // fsdp, fsdp, tensor


def _divisors(count: int, most: int | None = None) -> list[int]:
    return [n for n in range(1, min(count, most or count) + 1) if count % n == 0]


def search(
    first: Tried,
    others: Sequence[Candidate],
    formula: Formula,
    room: float,
    trial: Callable[[Candidate], Trial],
    most: int,
) -> Iterator[Tried]:
    """Compiles the most promising candidate again and again, until none promises more.

    Args:
        first: the configuration that was given, compiled.
        others: what else there is.
        formula: what ranks them; it is fitted to whatever the compiler says.
        room: the bytes of a device that a program may have.
        trial: asks the compiler.
        most: how often to ask.

    Yields:
        Every candidate that was compiled, in that order.
    """
    left = [one for one in others if one != first.candidate]
    best = first.trial.seconds if first.trial.fits(room) else math.inf
    formula = formula.fitted(first.candidate, first.trial.seconds, first.trial.total)
    for _ in range(most):
        fitting = [x for x in left if formula.memory(x) <= MARGIN * room]
        if fitting:  # of equal ones, what keeps less
            chosen = min(fitting, key=lambda x: (formula.time(x), formula.memory(x)))
        elif left and not math.isfinite(best):
            chosen = min(left, key=formula.memory)
        else:
            return
        if formula.time(chosen) * GAIN >= best:
            return
        left.remove(chosen)
        try:
            said = trial(chosen)
        except InputError:
            continue  # it does not go together with the rest
        yield Tried(chosen, said)
        if said.fits(room):
            best = min(best, said.seconds)
        else:
            # What keeps as much on the same mesh does not fit either.
            left = [x for x in left if formula.memory(x) < formula.memory(chosen)]
        formula = formula.corrected(chosen, said.seconds, said.total)


def best(tried: Sequence[Tried], room: float) -> Tried | None:
    """The fastest that fits; None: none does.

    Args:
        tried: what was compiled.
        room: the bytes of a device that a program may have.
    """
    fitting = [one for one in tried if one.trial.fits(room)]
    return min(fitting, key=lambda one: one.trial.seconds, default=None)
