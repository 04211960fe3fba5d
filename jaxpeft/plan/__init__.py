"""`python -m jaxpeft.plan --config FILE`: what a run needs, before anything runs."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpeft import cli, console
from jaxpeft.devices import cpus, topologies
from jaxpeft.errors import InputError
from jaxpeft.plan import targeted

if TYPE_CHECKING:
    from jaxpeft.plan.planning import Plan

ABOUT = """What a training run needs on each device, from config.json and the compiled
step alone: no weights are read, no data, and no step is taken. Works for devices that
are not there."""
GIB = 2**30
HEADROOM = 0.92  # of a device's memory; the runtime and the allocator need the rest
# Their code is never run: only the plan of its memory counts.
FAST_COMPILES = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


def main(argv: Sequence[str]) -> int:
    """Runs the command with its arguments; returns the exit code."""
    args = parse(argv)
    if not args.in_child:
        cli.begin("planning, from shapes alone", aside=True)
    target, memory = args.target, args.device_memory
    if target is not None and not topologies.missing(target):
        return targeted.main(args, target, argv)
    if target is not None and (args.search or args.longest):
        raise InputError(topologies.missing(target))
    if target is not None:
        # What there is without its compiler; the same in the child.
        args.devices, args.platform = target.count, target.platform
        memory = memory or target.memory / 1e9
        if not args.in_child:
            console.warn(f"{topologies.missing(target)}; what follows is an estimate")

    # Imported here, so that --help answers at once.
    import jax

    from jaxpeft.assembly import configuration
    from jaxpeft.devices import sharding
    from jaxpeft.plan import planning

    def reopen(more: Sequence[str]) -> Any:
        return configuration.open_config(args.config, [*args.overrides, *more])

    cfg = reopen(())
    others = args.devices not in (None, jax.device_count())
    others = others or args.platform not in (None, jax.default_backend())
    if not args.in_child and others:
        return _in_child(args.devices or jax.device_count(), list(argv))
    simulated = _simulated(args, jax.default_backend())
    how = {"simulated": simulated, "like": args.platform or "gpu"}
    mesh = sharding.make_mesh(**cfg.mesh.model_dump())
    plan = planning.plan(cfg, mesh, **how)
    if memory is None and not simulated:
        memory = _reported_memory(jax.devices()[0])
    room = None if memory is None else memory * 1e9
    say: Callable[[str], None] = (lambda _: None) if args.json else console.say
    for line in lines(plan, room):
        say(line)
    advice = []
    if room is not None and not _fits(plan, room):

        def again(changed: Any) -> planning.Plan:
            sizes, devices = changed.mesh.model_dump(), list(mesh.devices.flat)
            other = sharding.make_mesh(**sizes, devices=devices)
            return planning.plan(changed, other, **how)

        asked = (reopen, plan, plan.devices, HEADROOM * room, again)
        for one in planning.advise(*asked):
            advice.append(one)
            say(f"  {_gib(one.plan.total)} with {' '.join(one.overrides)}")
        say(_verdict(advice[-1].plan if advice else plan, room))
    if args.json:
        console.say(json.dumps(as_json(plan, room, advice)))
    if args.save is not None:
        planning.save(cfg, mesh, Path(args.save))
        console.say(f"the compiled step is in {args.save}: train --programs uses it")
    return 0


def _simulated(args: argparse.Namespace, here: str) -> bool:
    """Whether the devices that are here stand for others.

    Where only a CPU is, a question for devices or their memory means an accelerator.
    """
    asked = args.devices is not None or args.device_memory is not None
    meant = asked and args.platform is None and here == "cpu"
    return args.in_child or (meant and args.save is None)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of `jaxpeft plan`.

    Raises:
        InputError: for those without sense.
    """
    args = _parser().parse_intermixed_args(list(argv))
    if args.devices is not None and args.devices < 1:
        raise InputError(f"--devices: found {args.devices}; give 1 or more")
    if args.target is not None:
        for name in ("devices", "platform"):
            if getattr(args, name) is not None:
                raise InputError(f"--target says what --{name} says; give one of them")
        args.target = topologies.parse(args.target)
    elif args.search or args.longest:
        name = "--search" if args.search else "--longest"
        raise InputError(f"{name} needs a target; name one, such as --target v5e-16")
    if args.search and args.longest:
        raise InputError("--search and --longest look for two things; give one of them")
    if args.save is not None:
        _check_save(args)
    if args.compilations < 1:
        raise InputError(f"--compilations: found {args.compilations}; give 1 or more")
    memory = args.device_memory
    if memory is not None and not memory > 0:
        raise InputError(f"--device-memory: found {memory}; give a number of GB")
    return args


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("plan", ABOUT)
    cli.config_arguments(parser)
    parser.add_argument(
        "--devices",
        metavar="N",
        type=int,
        help="plan for so many, there or not (default: those of this machine)",
    )
    parser.add_argument(
        "--device-memory",
        metavar="GB",
        type=float,
        help="of one device, in GB of 10^9 bytes; says whether the run fits, and what "
        "to change if not (default: what the devices here report)",
    )
    parser.add_argument(
        "--platform",
        choices=("cpu", "gpu", "tpu"),
        help="what the devices are, there or not (default: those of this machine; gpu "
        "where there are not so many, or only a CPU and --devices or --device-memory "
        "is given)",
    )
    parser.add_argument(
        "--target",
        metavar="NAME",
        help="compile the step for these devices, there or not, by their vendor's own "
        f"compiler, and say what it says: {topologies.EXAMPLES} (TPUs are counted as "
        "Google counts them, GPUs after an x)",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="with --target: find the mesh, accumulation and remat with the most "
        "tokens a second that fit",
    )
    parser.add_argument(
        "--longest",
        action="store_true",
        help="with --target: find the longest sequence that fits, one at a time on "
        "each device, and what each setting that makes room would add",
    )
    parser.add_argument(
        "--compilations",
        metavar="N",
        type=int,
        default=6,
        help="that --search or --longest may take (default: 6)",
    )
    parser.add_argument(
        "--save",
        metavar="FILE",
        type=cli.path,
        help="keep the compiled step in a file, for train --programs FILE: of the "
        "devices that are here, or of a TPU that --target names",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--in-child", action="store_true", help=argparse.SUPPRESS)
    return parser


def _check_save(args: argparse.Namespace) -> None:
    """Raises InputError where a program could not be used by a run."""
    if args.devices is not None or args.platform is not None:
        raise InputError(
            "--save keeps a program for the devices that are here, or that --target "
            "names; leave out --devices and --platform"
        )
    if args.search or args.longest:
        raise InputError("--save keeps one step; paste what was found, and save that")
    if args.target is not None and args.target.gpu is not None:
        raise InputError(
            f"--save: {args.target.text!r}: XLA times a GPU's kernels on the device "
            "while it compiles; run plan --save on a machine that has it, without "
            "--target"
        )


def lines(plan: "Plan", room: float | None) -> list[str]:
    """The plan in lines for a person.

    Args:
        plan: of a run.
        room: the bytes of a device, None where they are unknown.
    """
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    share = plan.trainable / plan.parameters
    parts = {
        "weights": plan.weights,
        "adapters": plan.adapters,
        "optimizer state": plan.optimizer,
        "batch": plan.batch,
        "activations": plan.activations,
        "temporaries": plan.temporaries,
        "total": plan.total,
    }
    text = [
        f"devices: {plan.devices} (mesh: {mesh})"
        + (", simulated" if plan.simulated else ""),
        f"parameters: {plan.parameters:,}, of them trainable {plan.trainable:,} "
        f"({share:.2%})",
        "memory of a device at the fullest moment of a step, in GiB of 2^30 bytes:",
        *(f"  {name:<16}{_gib(size):>12}" for name, size in parts.items()),
        *_of_the_host(plan),
        *_undivided(plan),
        f"matrix products of a step: {plan.flops / 1e12:,.2f} TFLOP, "
        f"{plan.flops / 1e12 / plan.devices:,.2f} a device",
    ]
    if plan.sent:
        text.append("a device sends in a step:")
        text += [f"  {kind:<16}{_gib(n):>14}" for kind, n in plan.sent.items()]
    else:
        text.append("devices send each other nothing")
    if room is None:
        text.append("whether it fits: name the memory of a device, --device-memory GB")
    elif _fits(plan, room):
        text.append(
            f"fits: {_gib(plan.total)}, {plan.total / room:.0%} of the "
            f"{_gib(room)} of a device ({room / 1e9:,.4g} GB of 10^9 bytes)"
        )
    else:
        text.append(
            f"does not fit: {_gib(plan.total)} of the {_gib(room)} of a device "
            f"({room / 1e9:,.4g} GB of 10^9 bytes), of which the runtime needs "
            f"{1 - HEADROOM:.0%}. What would help:"
        )
    return text


def _of_the_host(plan: "Plan") -> list[str]:
    if not plan.on_the_host:
        return []
    return [f"memory of its host, for each device: {_gib(plan.on_the_host)}"]


def _undivided(plan: "Plan") -> list[str]:
    if not plan.whole:
        return []
    names = ", ".join(name.removesuffix(".kernel") for name in plan.whole[:3])
    more = f" and {len(plan.whole) - 3} more" if len(plan.whole) > 3 else ""
    return [
        f"  whole on every device, since the mesh does not divide them: {names}{more}; "
        "choose other sizes"
    ]


def as_json(plan: "Plan", room: float | None, advice: Sequence[Any]) -> dict[str, Any]:
    """The plan as JSON can hold it; sizes in bytes.

    Args:
        plan: of a run.
        room: the bytes of a device, None where they are unknown.
        advice: what would help, each a `planning.Advice`.
    """
    names = "parameters trainable weights adapters optimizer batch activations".split()
    names += "temporaries total flops sent mesh devices simulated whole".split()
    names += ["on_the_host"]
    fields: dict[str, Any] = {name: getattr(plan, name) for name in names}
    fields["fits"] = None if room is None else _fits(plan, room)
    fields["advice"] = [
        {
            "overrides": list(one.overrides),
            "total": one.plan.total,
            "fits": None if room is None else _fits(one.plan, room),
        }
        for one in advice
    ]
    return fields


def _fits(plan: "Plan", room: float) -> bool:
    return plan.fits(HEADROOM * room)


def _verdict(plan: "Plan", room: float) -> str:
    if _fits(plan, room):
        return "The last line fits."
    return (
        "Nothing of this is enough: take more devices or larger ones, a smaller model, "
        "shorter sequences, or fewer trained parameters."
    )


def _in_child(devices: int, argv: list[str]) -> int:
    """The same command where so many CPU devices stand for those that are not here."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILES} {cpus.FLAG}{devices}"
    # Nothing runs there, so that no device waits for another in a thread of its own.
    threads = {cpus.VARIABLE: str(os.cpu_count() or 1)}
    said = {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", "jaxpeft.plan", *argv, "--in-child"],
        env={**threads, **os.environ, **said},
    )
    return done.returncode


def _reported_memory(device: Any) -> float | None:
    """The GB of a device of this machine, where it says."""
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    return limit / 1e9 if limit else None


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:,.1f} MiB"
