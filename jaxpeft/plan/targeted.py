"""`plan --target`: what the vendor's own compiler says of the step."""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jaxpeft import console
from jaxpeft.devices import gpu_memory, sharding, topologies
from jaxpeft.devices.topologies import Topology
from jaxpeft.plan.collectives import collectives, totals

if TYPE_CHECKING:
    from jaxpeft.plan.compiling import Compiled
    from jaxpeft.plan.search import Trial, Tried

# Of a GPU's memory, as plan has it; a TPU's compiler counts what the runtime needs.
HEADROOM = {"gpu": gpu_memory.SHARE, "tpu": 1.0}
GIB = 2**30
# For a process that has no device of its own, and wants to hear of none.
ALONE = {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    # JAX writes programs for other devices to its cache, and cannot read them.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    **topologies.QUIET_TPU,
}


def main(args: argparse.Namespace, target: Topology, argv: Sequence[str]) -> int:
    """Compiles the step for a target and says what its compiler says.

    In a process of its own: what JAX is told here has to be told before it starts.

    Args:
        args: of the command.
        target: `args.target`.
        argv: the command's arguments.
    """
    if not args.in_child:
        command = [sys.executable, "-m", "jaxpeft.plan", *argv, "--in-child"]
        return subprocess.run(command, env={**os.environ, **ALONE}).returncode
    with topologies.hushed():  # parts of JAX for GPUs talk while they are loaded
        import jax

        from jaxpeft.assembly import configuration
        from jaxpeft.devices import determinism
        from jaxpeft.plan import compiling, planning

    def reopen(more: Sequence[str]) -> Any:
        return configuration.open_config(args.config, [*args.overrides, *more])

    def trial(cfg: Any) -> "Compiled":
        return compiling.compiled(cfg, target, devices)

    cfg = reopen(())
    if cfg.deterministic:  # of a GPU's step other operations are chosen then
        determinism.require()
    with topologies.hushed():
        jax.devices()
        devices = topologies.devices(target)
    room = HEADROOM[target.platform] * target.memory
    if args.device_memory is not None:
        room = HEADROOM["gpu"] * args.device_memory * 1e9
    if args.longest:
        return _longest(args, reopen, room, trial, devices)
    if args.save is None:
        found = trial(cfg)
    else:
        found = compiling.saved(cfg, target, devices, Path(args.save))
    say: Callable[[str], None] = (lambda _: None) if args.json else console.say
    for line in lines(found, target, room):
        say(line)
    if args.search:
        return _search(args, reopen, found, room, trial)
    advice = []
    if not found.fits(room):
        say("What would help, by the same compiler:")
        for one in planning.advise(reopen, found, target.count, room, trial):
            advice.append(one)
            say(f"  {_gib(one.plan.total)} with {' '.join(one.overrides)}")
        say(_verdict(advice[-1].plan if advice else found, room))
    if args.json:
        console.say(json.dumps(as_json(found, target, room, advice)))
    return 0


def _search(
    args: argparse.Namespace,
    reopen: Callable[[Sequence[str]], Any],
    found: "Compiled",
    room: float,
    trial: Callable[[Any], "Compiled"],
) -> int:
    """Searches for what is faster than the configuration that was given."""
    from jaxpeft.plan import search

    start, cfg = time.monotonic(), reopen(())
    say: Callable[[str], None] = (lambda _: None) if args.json else console.say
    given = search.Tried(search.of_config(cfg, found.mesh), found)
    others = list(
        search.candidates(
            found.target.count,
            cfg.training.batch_size,
            found.model,
            given=given.candidate,
            length=cfg.data.max_length,
            # Each tile would drop others than the whole does.
            tiles=not cfg.adapter.options.get("lora_dropout"),
        )
    )
    say(
        f"searching among {len(others)} ways to run this step, with at most "
        f"{args.compilations} more compilations:"
    )
    say(f"  {_trial(found, room)}  as given")
    tried = [given]
    for one in search.search(
        given,
        others,
        found.formula(cfg),
        room,
        lambda other: trial(reopen(other.overrides)),
        args.compilations,
    ):
        tried.append(one)
        say(f"  {_trial(one.trial, room)}  {' '.join(one.candidate.overrides)}")
    took = time.monotonic() - start
    chosen = search.best(tried, room)
    say(f"{len(tried) - 1} compilations in {took:,.0f} s")
    if chosen is None:
        say("nothing that was tried fits; more devices, larger ones or fewer tokens do")
    elif chosen is given:
        say("the configuration as it was given is the fastest that was found")
    else:
        say("the fastest that fits, to paste into the command line:")
        say(f"  {' '.join(chosen.candidate.overrides)}")
    if args.json:
        said = as_json(found, args.target, room, [])
        said["search"] = [_as_json(one, one is chosen, room) for one in tried]
        console.say(json.dumps({**said, "search_seconds": took}))
    return 0


def _as_json(one: "Tried", best: bool, room: float) -> dict[str, Any]:
    return {
        "overrides": list(one.candidate.overrides),
        "total": one.trial.total,
        "fits": one.trial.fits(room),
        "tokens_per_second": one.trial.speed,
        "best": best,
    }


def _longest(
    args: argparse.Namespace,
    reopen: Callable[[Sequence[str]], Any],
    room: float,
    trial: Callable[[Any], "Compiled"],
    devices: Sequence[Any],
) -> int:
    """Looks for the longest sequence that fits."""
    from jaxpeft.plan import longest

    say: Callable[[str], None] = (lambda _: None) if args.json else console.say
    cfg = reopen(())
    sizes = sharding.make_mesh(**cfg.mesh.model_dump(), devices=devices).shape
    each = sharding.parts_of(sizes, sharding.BATCH)
    step = math.lcm(longest.STEP, sizes.get(sharding.CONTEXT, 1))
    alone = (f"training.batch_size={each}", "training.gradient_accumulation_steps=1")

    def at(length: int, more: Sequence[str] = ()) -> "Compiled":
        return trial(reopen((*alone, *more, f"data.max_length={length}")))

    say("the longest sequence that fits, one at a time on each device:")
    tried = []
    search = longest.longest(at, room, cfg.data.max_length, args.compilations, step)
    for one in search:
        tried.append(one)
        say(f"  {one.length:>9,} tokens  {_said(one.trial, room)}")
    found = longest.best(tried, room)
    if found is None:
        say("none of these fits; more devices or larger ones do")
    else:
        say(f"the longest that was found: {found.length:,} tokens")
        for line in lines(cast("Compiled", found.trial), args.target, room)[3:]:
            say(f"  {line}")
        say(
            "what each of these would add by itself: the memory at that length by a "
            "compilation, and how far it would reach by a straight line:"
        )
    switches, start = [], 0 if found is None else found.length
    for one in (
        ()
        if found is None
        else longest.gains(found, cfg, lambda more, n: at(n, more), room, step)
    ):
        switches.append(one)
        reached = f"{one.length:,} tokens, {one.length - start:+,}"
        say(f"  {_said(one.trial, room)}  {reached}  {' '.join(one.overrides)}")
    if args.json:
        said = {"target": args.target.text, "room": room}
        said["tried"] = [
            {"length": x.length, "total": x.trial.total, "fits": x.trial.fits(room)}
            for x in tried
        ]
        said["longest"] = found and found.length
        said["switches"] = [
            {"overrides": list(x.overrides), "length": x.length, "total": x.trial.total}
            for x in switches
        ]
        console.say(json.dumps(said))
    return 0


def _said(found: Any, room: float) -> str:
    return f"{_gib(found.total):>11}  {'fits' if found.fits(room) else 'does not fit'}"


def _trial(found: "Trial", room: float) -> str:
    speed = f"{found.speed:>10,.0f} tokens/s" if found.fits(room) else "does not fit"
    return f"{speed:>19}  {_gib(found.total):>11}"


def lines(found: "Compiled", target: Topology, room: float) -> list[str]:
    """What a compiler said, in lines for a person.

    Args:
        found: what it said.
        target: what for.
        room: the bytes of a device that a program may have.
    """
    verdict = found.verdict
    mesh = ", ".join(f"{axis} {size}" for axis, size in found.mesh.items())
    how = "compiled before" if found.is_kept else "compiled"
    text = [
        f"target: {target.text}, {target.count} devices of {found.target.kind} "
        f"({_topology(target)}; mesh: {mesh})",
        f"{how} by {verdict.compiler} in {verdict.seconds:,.1f} s",
        f"parameters: {found.parameters:,}, of them trainable {found.trainable:,} "
        f"({found.trainable / found.parameters:.2%})",
    ]
    if verdict.refused:
        said = " ".join(verdict.refused.split())
        text.append(f"does not fit, says the compiler: {said[:600]}")
        return text
    text.append("memory of a device, by the compiler, in GiB of 2^30 bytes:")
    text += [f"  {name:<16}{_gib(size):>12}" for name, size in found.memory().items()]
    if there := found.on_the_host():
        text.append("memory of its host, for each device:")
        text += [f"  {name:<16}{_gib(size):>12}" for name, size in there.items()]
    share = f"{_gib(found.total)}, {found.total / target.memory:.0%} of the "
    share += f"{_gib(target.memory)} of a device"
    if found.fits(room):
        text.append(f"fits: {share}")
    else:
        keeps = 1 - room / target.memory
        text.append(f"does not fit: {share}, of which the runtime needs {keeps:.0%}")
    text.append(
        "largest arrays at the fullest moment, and the code that asks for them:"
    )
    text += [f"  {_gib(one.nbytes):>12}  {one}" for one in found.largest()]
    text += costs(found)
    return text


def costs(found: "Compiled") -> list[str]:
    """What a step costs by the estimate, in lines; none where there is none.

    Args:
        found: what a compiler said.
    """
    cost, devices = found.estimate, found.target.count
    if cost is None:
        return []
    counted = f"{_seconds(cost.roofline)} by a roofline"
    if cost.cycles is not None:
        counted = f"by the compiler's {cost.cycles:,} cycles; " + counted
    text = [
        f"a step, estimated: {_seconds(cost.seconds)} ({counted}; its products at the "
        f"devices' peak: {_seconds(cost.at_peak)})",
        f"tokens: {found.speed:,.0f} a second, {found.speed / devices:,.0f} a device; "
        f"MFU {found.mfu:.1%}",
        f"a device computes {cost.flops / 1e12:,.2f} TFLOP in products, and moves "
        f"{_gib(cost.nbytes)} to and from its memory",
    ]
    if cost.sent:
        exposed, waits = cost.sent_exposed / cost.sent, cost.waits - cost.host_waits
        text.append(
            f"a device sends {_gib(cost.sent)}: {1 - exposed:.0%} of it while "
            f"it computes; it waits {_seconds(waits)} for the rest"
        )
        sent = totals(collectives(found.program))
        text += [f"  {kind:<20}{_gib(n):>12}" for kind, n in sent.items()]
    else:
        text.append("devices send each other nothing")
    if cost.to_host or cost.from_host:
        text.append(
            f"a device sends its host {_gib(cost.to_host)} and is sent "
            f"{_gib(cost.from_host)}; it waits {_seconds(cost.host_waits)} for that"
        )
    text.append("costliest places:")
    text += [
        f"  {one.seconds / cost.seconds:>5.0%}  {_seconds(one.seconds):>9}  {one.name}"
        for one in cost.places[:3]
    ]
    return text


def _topology(target: Topology) -> str:
    if target.gpu is None:
        return f"topology {'x'.join(map(str, target.grid))}"
    nodes, each = target.grid
    return f"{nodes} node{'s' * (nodes > 1)} of {each}"


def as_json(
    found: "Compiled", target: Topology, room: float, advice: Sequence[Any]
) -> dict[str, Any]:
    """What a compiler said as JSON can hold it; sizes in bytes.

    Args:
        found: what it said.
        target: what for.
        room: the bytes of a device that a program may have.
        advice: what would help, each a `planning.Advice`.
    """
    verdict, cost = found.verdict, found.estimate
    return {
        "target": target.text,
        "kind": found.target.kind,
        "devices": target.count,
        "mesh": found.mesh,
        "parameters": found.parameters,
        "trainable": found.trainable,
        **{name.replace(" ", "_"): size for name, size in found.memory().items()},
        "total": found.total,
        "on_the_host": found.on_the_host(),
        "device_memory": target.memory,
        "fits": found.fits(room),
        "refused": verdict.refused,
        "flops": found.flops,
        "compiler": verdict.compiler,
        "seconds": verdict.seconds,
        "largest": [one._asdict() for one in found.largest()],
        "estimate": None if cost is None else asdict(cost),
        "tokens_per_second": found.speed,
        "mfu": found.mfu,
        "sent": {} if verdict.refused else totals(collectives(found.program)),
        "advice": [
            {
                "overrides": list(one.overrides),
                "total": one.plan.total,
                "fits": one.plan.fits(room),
            }
            for one in advice
        ],
    }


def _verdict(found: Any, room: float) -> str:
    if found.fits(room):
        return "The last line fits."
    return (
        "Nothing of this is enough: take more devices or larger ones, a smaller model, "
        "shorter sequences, or fewer trained parameters."
    )


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.1f} MiB"


def _seconds(time: float) -> str:
    return f"{time:,.2f} s" if time >= 1 else f"{1e3 * time:,.3g} ms"
