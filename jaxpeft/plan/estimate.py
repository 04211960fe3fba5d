"""How long a compiled program takes on its devices, by a roofline and its schedule.

An operation takes as long as the slower of two: its products at the device's peak for
their operands, and its bytes at the memory's bandwidth, each at a share of what makers
name (`SHARES`). Operations run one after another as they are scheduled; what devices
send each other runs beside them, one transfer after another, and is waited for where
its end is asked for. On a TPU the compiler's own count of cycles is taken beside it.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxpeft.hardware import Device, Target
from jaxpeft.plan.collectives import Transfer, transfers
from jaxpeft.plan.host_copies import copies
from jaxpeft.plan.loops import dearest, trips
from jaxpeft.plan.origins import Origins
from jaxpeft.plan.products import PASSES, Product, is_costed, products
from jaxpeft.plan.program_text import Computation, Operation, Program, read
from jaxpeft.plan.traffic import FREE, moved


class Shares(NamedTuple):
    """What of a peak is reached.

    Attributes:
        products: of the peak of products.
        memory: of the bandwidth of memory.
        links: of the bandwidth to other devices, and to the host.
        least: the seconds that an operation takes at least.
    """

    products: float
    memory: float
    links: float
    least: float


# GPUs: cuBLAS reaches 0.65 to 0.75 of an H100's peak with large products, a copy 0.9 of
# its bandwidth, NCCL 0.8 of NVLink's; a kernel begins after 2 microseconds. TPUs: the
# compiler's own count is 0.88 to 0.97 of the peak with large products; a ring uses two
# of the four or six links; no operation counts under a microsecond there.
SHARES = {
    "gpu": Shares(products=0.7, memory=0.9, links=0.8, least=2e-6),
    "tpu": Shares(products=0.9, memory=0.9, links=0.5, least=1e-6),
}

# Cycles in a second. Peak = multiply-adds in a cycle * 2 * clock: v2, v3 and v5e have
# 1, 2 and 4 units of 128 x 128 in a device, v4 and v5p 8 in two cores; v6e's 256 x 256
# units are taken to run at v5p's. Known products on v5e: the count is 1.03 to 1.14
# times their time at the peak, on v5p 1.03 to 1.11, on v6e 1.3 to 1.4.
CLOCKS = {
    "TPU v2": 0.70e9,
    "TPU v3": 0.94e9,
    "TPU v4": 1.05e9,
    "TPU v5": 1.75e9,
    "TPU v5p": 1.75e9,
    "TPU v5 lite": 1.5e9,
    "TPU v6 lite": 1.75e9,
}

# Of the peak in bfloat16 that products of float32 have on a GPU: as TF32 where that is
# allowed, else without its units for products.
FLOAT32_OF_BF16 = {"default": 0.5, "high": 0.17, "highest": 0.07}

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NO_CYCLES = 2**62  # what the compiler writes where it does not know


class Place(NamedTuple):
    """What a part of the code costs in a step.

    Attributes:
        name: of the code, as `origins` has it.
        seconds: that its operations take.
        flops: of its products, on one device.
        nbytes: that it moves to and from memory, on one device.
    """

    name: str
    seconds: float
    flops: float
    nbytes: float


@dataclass(frozen=True)
class Estimate:
    """What a run of a program costs on one device.

    Attributes:
        seconds: by the compiler's cycles where it counts them, else by the roofline;
            with what is waited for.
        roofline: by the roofline, with what is waited for.
        cycles: that the compiler counts, loops included; None: it does not.
        waits: the seconds in which nothing is computed, since something sent is not
            there; they are in `seconds` and `roofline`.
        at_peak: the seconds of the products alone at the device's peak.
        flops: of the products.
        nbytes: moved to and from memory.
        sent: bytes that go to other devices.
        sent_exposed: of them those that are waited for.
        places: the costliest first.
        to_host: bytes that go to the host's memory.
        from_host: bytes that come from there.
        host_waits: the seconds of `waits` in which one of these is waited for.
        unknown: kernels whose arithmetic neither they nor a formula here name, which
            count by their bytes alone.
    """

    seconds: float
    roofline: float
    cycles: int | None
    waits: float
    at_peak: float
    flops: float
    nbytes: float
    sent: float
    sent_exposed: float
    to_host: float
    from_host: float
    host_waits: float
    places: tuple[Place, ...]
    unknown: tuple[str, ...]


def estimate(program: Any, target: Target) -> Estimate | None:
    """What a run of a compiled program costs on each of its devices.

    Args:
        program: a `jax.stages.Compiled`, its HLO text, or what `read` made of it.
        target: what it was compiled for.

    Returns:
        The estimate; None where the device's peaks are not known.
    """
    device, shares = target.device, SHARES.get(target.platform)
    if device is None or shares is None:
        return None
    if not device.in_16_bits or not device.bandwidth:
        return None
    read_one = program if isinstance(program, Program) else read(program)
    clock = CLOCKS.get(target.kind) if target.platform == "tpu" else None
    counts = clock is not None and _cycles_of(read_one.entry, read_one) > 0
    by_roofline = _Course(read_one, device, target.platform, shares, None)
    roofline = by_roofline.seconds(read_one.entry, 1)
    course, seconds = by_roofline, roofline
    if counts:
        course = _Course(read_one, device, target.platform, shares, clock)
        seconds = course.seconds(read_one.entry, 1)
    return Estimate(
        seconds=seconds,
        roofline=roofline,
        cycles=round(course.cycles) if counts else None,
        waits=course.waits,
        at_peak=course.at_peak,
        flops=sum(course.flops.values()),
        nbytes=sum(course.nbytes.values()),
        sent=course.sent,
        sent_exposed=course.exposed,
        to_host=course.copied[True],
        from_host=course.copied[False],
        host_waits=course.host_waits,
        places=tuple(
            Place(name, spent, course.flops[name], course.nbytes[name])
            for name, spent in sorted(course.spent.items(), key=lambda x: -x[1])
        ),
        unknown=tuple(sorted(course.unknown)),
    )


def rate(product: Product, device: Device, platform: str) -> float:
    """The peak of a device for a product, in FLOP a second.

    Args:
        product: of a program.
        device: that computes it.
        platform: "gpu" or "tpu".
    """
    narrow = device.in_16_bits
    if product.dtype in ("s8", "u8", "s4", "u4"):
        return device.int8 or narrow
    if product.dtype.startswith("f8"):
        return device.fp8 or narrow
    if product.dtype in ("f32", "f64"):
        if platform == "tpu":
            return narrow / PASSES[product.precision]
        # TF32 came with bfloat16.
        precision = product.precision if device.bf16 else "highest"
        return narrow * FLOAT32_OF_BF16[precision]
    return narrow


def _zeros() -> dict[str, float]:
    return defaultdict(float)


@dataclass
class _Course:
    """A program run in mind: what its operations take, one after another."""

    program: Program
    device: Device
    platform: str
    shares: Shares
    clock: float | None
    spent: dict[str, float] = field(default_factory=_zeros)
    flops: dict[str, float] = field(default_factory=_zeros)
    nbytes: dict[str, float] = field(default_factory=_zeros)
    unknown: set[str] = field(default_factory=set)
    cycles: float = 0.0
    waits: float = 0.0
    at_peak: float = 0.0
    sent: float = 0.0
    exposed: float = 0.0
    copied: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    host_waits: float = 0.0

    def __post_init__(self) -> None:
        self._origins = Origins(self.program)
        self._copies = copies(self.program)
        self._starts: dict[tuple[str, str], list[Transfer]] = {}
        for one in transfers(self.program):
            self._starts.setdefault((one.computation, one.start), []).append(one)

    def seconds(self, computation: Computation, times: int) -> float:
        """What a run of a computation takes; what it consists of is noted down.

        Args:
            computation: of the program.
            times: how often it runs in a run of the program.
        """
        now = link_free = 0.0
        ends: dict[str, list[tuple[float, float, float]]] = {}
        lanes, arrivals = {True: 0.0, False: 0.0}, dict[str, float]()
        for one in computation.operations.values():
            copy = self._copies.get((computation.name, one.name))
            if copy is not None:
                # The link to the host carries both ways at once.
                took = copy.nbytes / self._host_link()
                lanes[copy.to_host] = max(now, lanes[copy.to_host]) + took
                arrivals[copy.done] = lanes[copy.to_host]
                self.copied[copy.to_host] += copy.nbytes * times
            else:
                now += self._own(computation, one, times)
            late = max(0.0, arrivals.pop(one.name, 0.0) - now)
            if late:
                now += late
                self.waits += late * times
                self.host_waits += late * times
                self.spent["waiting for the host"] += late * times
            for transfer in self._starts.get((computation.name, one.name), ()):
                took = transfer.what.sent / self._link()
                link_free = max(now, link_free) + took
                waiting = (link_free, took, transfer.what.sent)
                ends.setdefault(transfer.done, []).append(waiting)
                self.sent += transfer.what.sent * times
            for end, took, sent in ends.pop(one.name, ()):
                late = max(0.0, end - now)
                now += late
                self.waits += late * times
                self.exposed += sent * min(1.0, late / took) * times if took else 0.0
                if late:
                    self.spent["waiting for other devices"] += late * times
        return now

    def _host_link(self) -> float:
        return self.device.host * self.shares.links

    def _link(self) -> float:
        return (self.device.link or self.device.bandwidth) * self.shares.links

    def _own(self, computation: Computation, one: Operation, times: int) -> float:
        """The seconds of an operation itself, those of what it runs included."""
        called = [self.program.computations[name] for _, name in one.called]
        if one.opcode == "while":
            turns = trips(self.program, one, computation) or 1
            body = self.program.computations[dict(one.called)["body"]]
            return turns * self.seconds(body, times * turns)
        if one.opcode == "conditional":
            return self.seconds(dearest(self.program, one), times)
        if one.opcode == "call":
            return sum(self.seconds(inner, times) for inner in called)
        if one.opcode in FREE or one.opcode.endswith(("-done", "-update")):
            return 0.0
        is_collective = (computation.name, one.name) in self._starts
        if is_collective and one.opcode != "fusion":
            return 0.0
        return self._computed(computation, one, times)

    def _computed(self, computation: Computation, one: Operation, times: int) -> float:
        found = list(products(self.program, computation, one))
        nbytes = moved(self.program, computation, one)
        flops = sum(x.flops for x in found)
        at_peak = sum(x.flops / rate(x, self.device, self.platform) for x in found)
        in_memory = nbytes / self.device.bandwidth / self.shares.memory
        took = max(at_peak / self.shares.products, in_memory)
        took = max(took, self.shares.least) if nbytes or flops else 0.0
        if self.clock is not None:
            counted = _cycles(one)
            self.cycles += (counted or 0) * times
            # A kernel of our own has no count, and copies run beside the rest.
            if counted is not None or one.opcode != "custom-call":
                took = (counted or 0) / self.clock
        if one.opcode == "custom-call" and nbytes and not is_costed(one):
            self.unknown.add(one.attributes.get("custom_call_target", "").strip('"'))
        if took or flops or nbytes:
            name = self._origins.name(computation, one)
            self.spent[name] += took * times
            self.flops[name] += flops * times
            self.nbytes[name] += nbytes * times
        self.at_peak += at_peak * times
        return took


def _cycles(one: Operation) -> int | None:
    """The cycles that the compiler counts for an operation; None: it does not."""
    found = _CYCLES.search(one.rest)
    count = int(found[1]) if found else 0
    return count if 0 < count < _NO_CYCLES else None


def _cycles_of(computation: Computation, program: Program) -> int:
    """Whether and how many cycles are counted in a computation, each loop once."""
    total = 0
    for one in computation.operations.values():
        total += _cycles(one) or 0
        if one.opcode == "while":
            body = program.computations[dict(one.called)["body"]]
            total += _cycles_of(body, program)
    return total
