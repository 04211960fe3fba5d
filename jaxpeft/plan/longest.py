"""`plan --longest`: the longest sequence that fits a target, by its own compiler.

Memory grows with the length almost as a straight line. So what two lengths take says
where the line meets the room, and few lengths are compiled: the first is guessed from
the one that was given, and each further one from the two that are nearest.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from jaxpeft.assembly.adapter import gives_a_model
from jaxpeft.config import RunConfig
from jaxpeft.errors import InputError

STEP = 1024  # lengths are its multiples
NEAR = 1.02  # what another compilation has to promise
TILE = 4096  # that is tried


class Trial(Protocol):
    """What a compiler says of a configuration: see `compiling.Compiled`."""

    @property
    def total(self) -> int:
        """The bytes on a device at the fullest moment; 0: it does not say."""
        ...

    @property
    def kept(self) -> dict[str, int]:
        """The bytes of what the step is given, by kind."""
        ...

    def fits(self, room: float) -> bool:
        """Whether it needs no more than so many bytes of a device."""
        ...


class Tried(NamedTuple):
    """A length that was compiled.

    Attributes:
        length: of each sequence, in tokens.
        trial: what the compiler said.
    """

    length: int
    trial: Trial


class Switch(NamedTuple):
    """A setting that makes room, and how far it would reach.

    Attributes:
        overrides: what sets it.
        length: of the longest sequence with it, by the straight line.
        trial: what the compiler said of it at the length without it.
    """

    overrides: tuple[str, ...]
    length: int
    trial: Trial


def longest(
    trial: Callable[[int], Trial],
    room: float,
    first: int,
    compilations: int,
    step: int = STEP,
) -> Iterator[Tried]:
    """Compiles lengths until the longest that fits is known to 2 %.

    Args:
        trial: the length of a sequence -> what the compiler says of it.
        room: the bytes of a device that a program may have.
        first: the length to begin with.
        compilations: how many it may take.
        step: lengths are its multiples.

    Yields:
        Each length that was compiled; `best` names the longest that fits.
    """
    tried: list[Tried] = []
    length = _rounded(first, step)
    for _ in range(compilations):
        tried.append(Tried(length, trial(length)))
        yield tried[-1]
        low = max((x.length for x in tried if x.trial.fits(room)), default=0)
        misses = [x.length for x in tried if not x.trial.fits(room)]
        high = min(misses, default=None)
        length = _rounded(_reached(tried, room), step)
        if high is not None and length >= high:
            length = _rounded((low + high) // 2, step)  # the line ends too far
        if length in (low, high) or length < NEAR * low:
            return


def best(tried: Sequence[Tried], room: float) -> Tried | None:
    """The longest of the lengths that fit; None: none does.

    Args:
        tried: what was compiled.
        room: the bytes of a device that a program may have.
    """
    fitting = [x for x in tried if x.trial.fits(room)]
    return max(fitting, key=lambda x: x.length, default=None)


def switches(cfg: RunConfig) -> Iterator[tuple[str, ...]]:
    """The settings that make room and are not taken yet, as overrides.

    Attention that keeps no scores, and a loss in parts, are always taken.

    Args:
        cfg: the configuration.
    """
    if cfg.model.remat != "full":
        yield ("model.remat=full",)
    has_adapter, offload = not gives_a_model(cfg.adapter), cfg.model.offload
    if offload in ("none", "weights"):
        yield (f"model.offload={'activations' if offload == 'none' else 'both'}",)
    if cfg.model.tile is None:
        yield (f"model.tile={TILE}",)
    if cfg.model.quantization == "none" and has_adapter:
        yield ("model.quantization=nf4",)
    if offload in ("none", "activations") and has_adapter:
        yield (f"model.offload={'weights' if offload == 'none' else 'both'}",)


def gains(
    found: Tried,
    cfg: RunConfig,
    trial: Callable[[tuple[str, ...], int], Trial],
    room: float,
    step: int = STEP,
) -> Iterator[Switch]:
    """What each setting would add, by one compilation at the length that was found.

    Args:
        found: the longest that fits.
        cfg: the configuration.
        trial: (overrides, length) -> what the compiler says.
        room: the bytes of a device that a program may have.
        step: lengths are its multiples.
    """
    for overrides in switches(cfg):
        try:
            one = Tried(found.length, trial(overrides, found.length))
        except InputError:
            continue  # it does not go together with the rest
        reached = _rounded(_reached([one], room), step)
        yield Switch(overrides, reached, one.trial)


def _reached(tried: Sequence[Tried], room: float) -> float:
    """Where the line through the two nearest lengths, or one and what is kept, ends."""
    known = [x for x in tried if x.trial.total]
    if not known:
        return tried[-1].length / 2
    nearest = sorted(known, key=lambda x: abs(x.trial.total - room))[:2]
    one = nearest[0]
    start, at = sum(one.trial.kept.values()) - one.trial.kept["batch"], 0
    if len(nearest) == 2:
        start, at = nearest[1].trial.total, nearest[1].length
    slope = (one.trial.total - start) / (one.length - at)
    return one.length + (room - one.trial.total) / slope if slope > 0 else one.length


def _rounded(length: float, step: int) -> int:
    return max(step, int(length) // step * step)
