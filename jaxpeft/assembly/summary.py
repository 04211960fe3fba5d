"""What a run consists of, in a few lines: parameters, memory, data."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import jax

from jaxpeft import console, kernel, optim, tree
from jaxpeft.assembly import updates
from jaxpeft.assembly.adapter import gives_a_model
from jaxpeft.assembly.run import Run
from jaxpeft.data import EvalBatches, Summary
from jaxpeft.data.shown import CLOSE, OPEN, in_short
from jaxpeft.devices import cluster

MIB = 2**20
UNLIKE = 3  # from how many times the size on sources of equal weight are remarked on


def parameter_table(params: Mapping[str, Any], trainable: Any) -> list[str]:
    """Lines with the parameters of each kind of module: total and trainable.

    A kind is the last named component before the weight: "q_proj", "norm".

    Args:
        params: all parameters, nested mappings.
        trainable: those that train, None where one is frozen.
    """
    total: dict[str, int] = defaultdict(int)
    trains: dict[str, int] = defaultdict(int)
    for counts, some in ((total, params), (trains, trainable)):
        for name, value in tree.walk(some):
            counts[_kind(name)] += _count(value)
    rows = [("module", "parameters", "trainable")]
    rows += [(k, f"{n:,}", f"{trains[k]:,}") for k, n in total.items()]
    everything, learned = sum(total.values()), sum(trains.values())
    share = f"{learned:,} ({learned / max(everything, 1):.2%})"
    rows.append(("total", f"{everything:,}", share))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [
        f"  {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}"
        for row in rows
    ]


def parameter_counts(params: Mapping[str, Any], trainable: Any) -> tuple[int, int]:
    """The number of parameters of all modules, and of those among them that train.

    Args:
        params: all parameters, nested mappings.
        trainable: those that train, None where one is frozen.
    """
    total, trains = (
        sum(_count(value) for _, value in tree.walk(some))
        for some in (params, trainable)
    )
    return total, trains


def memory_line(
    frozen: Any, trainable: Any, opt_state: Any, trains: str = "adapter"
) -> str:
    """A line with the MiB of what stays in memory between two steps.

    Args:
        frozen: the parameters that do not train.
        trainable: those that do.
        opt_state: the optimizer's state.
        trains: what to call the part that trains beside a frozen one.
    """
    parts = {"base": frozen, trains: trainable, "optimizer": opt_state}
    if not jax.tree.leaves(frozen):
        parts = {"weights": trainable, "optimizer": opt_state}
    sizes = {name: _bytes(value) / MIB for name, value in parts.items()}
    return "memory: " + ", ".join(f"{n} {s:,.1f} MiB" for n, s in sizes.items())


def data_lines(kind: str, summary: Summary) -> list[str]:
    """Lines about a data set; what was cut is never passed over in silence.

    Args:
        kind: what the data serve for, such as "training".
        summary: their counts.
    """
    lengths = ", ".join(map(str, summary.lengths))
    rows = f" in {summary.rows:,} packed rows" if summary.rows is not None else ""
    begins = "streamed; the first records are " if summary.sampled else ""
    lines = [
        f"{kind} data: {begins}{summary.examples:,} "
        f"{'example' if summary.examples == 1 else 'examples'}{rows}, "
        f"{summary.tokens:,} tokens, {summary.supervised:,} of them supervised; "
        f"padded to {lengths}"
    ]
    if summary.truncated:
        lines.append(
            f"  {summary.truncated:,} examples are longer than data.max_length and "
            f"were cut; {summary.without_target:,} have nothing left to learn"
        )
    elif summary.without_target:
        lines.append(f"  {summary.without_target:,} examples have nothing to learn")
    return lines


def data_warnings(kind: str, summary: Summary) -> list[str]:
    """Lines about what is seldom wanted: rows left out, small sources drawn often.

    Args:
        kind: what the data serve for, such as "training".
        summary: their counts.
    """
    lines = [line for one in summary.sources for line in one.remarks]
    return lines + (_often(summary) if kind == "training" else [])


def _often(summary: Summary) -> list[str]:
    """What equal weights do to sources of unlike size."""
    if summary.sampled:
        return []  # nobody knows the sizes
    total = sum(one.weight for one in summary.sources)
    never = [
        f"data.train: {one.path}, of weight {one.weight:g}, is drawn less than once in "
        f"an epoch of {summary.examples:,}: nothing or next to nothing of it is "
        "learned; raise its weight, or lower those of the others"
        for one in summary.sources
        if summary.examples * one.weight < total
    ]
    if never:
        return never
    weights = {one.weight for one in summary.sources}
    fewest = min(summary.sources, key=lambda one: one.examples)
    most = max(summary.sources, key=lambda one: one.examples)
    if len(weights) > 1 or most.examples < UNLIKE * fewest.examples:
        return []
    draws = summary.examples / len(summary.sources)
    return [
        f"data.train: all sources have the same weight, so that an example of "
        f"{fewest.path}, which has {fewest.examples:,}, is shown about "
        f"{draws / fewest.examples:.3g} times an epoch, and one of "
        f"{most.path}, which has {most.examples:,}, {draws / most.examples:.2g} times; "
        "to show all equally often, give each source its number of examples as weight"
    ]


def _kind(name: str) -> str:
    return name.rsplit(".", 2)[-2] if "." in name else name


def _count(value: Any) -> int:
    """The parameters of a node: scales and keys are none, a byte may hold two."""
    if not kernel.is_node(value):
        return tree.count(value)
    if isinstance(
        value, kernel.LayerwiseKernel
    ):  # what trains stands in the place of the rest
        return max(tree.count(value.own), tree.count(value.stack))
    if not kernel.is_adapter(value):  # a quantized weight
        return math.prod(value.shape) if jax.tree.leaves(value) else 0
    base, own = kernel.base_of(value), kernel.trainable(value)
    beneath = 0 if base is value else _count(base)
    return tree.count(own or value) + beneath  # what came with an adapter may be frozen


def _bytes(value: Any) -> int:
    arrays = [x for x in jax.tree.leaves(value) if hasattr(x, "dtype")]
    return tree.nbytes(arrays)


def describe(run: Run) -> None:
    """Says what is about to happen: parameters, memory, data, steps."""
    console.say(f"model: {run.cfg.model.path} ({run.base.cfg.model_type})")
    params = tree.combine(run.trainable, run.frozen)
    for line in parameter_table(params, run.trainable):
        console.say(line)
    opt_state = jax.eval_shape(run.tx.init, run.trainable)
    is_model = gives_a_model(run.cfg.adapter)
    trains = "trained weights" if is_model else "adapter"
    console.say(memory_line(run.frozen, run.trainable, opt_state, trains))
    if run.base.cfg.activation_dtype:
        console.say(
            f"computing in float32: on a CPU that is faster than {run.base.dtype}, "
            "which only the stored weights have"
        )
    if run.base.scales_loss:
        console.say(
            "computing in float16: the loss is scaled (loss_scale in the log), and a "
            "step whose gradient does not fit is skipped and lowers the scale"
        )
    if run.mesh.size > 1:
        mesh = ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
        several = cluster.process_count()
        console.say(
            f"devices: {run.mesh.size} (mesh: {mesh})"
            + (f" in {several} processes" if several > 1 else "")
        )
    for kind, batches in (("training", run.batches), ("evaluation", run.evaluation)):
        if batches is None:
            continue
        counts = batches.summary()
        for line in data_lines(kind, counts):
            console.say(line)
        if kind == "training":
            shown = in_short(batches.examples, run.base.tokenizer)
            console.say(f"  the first, {OPEN}learned{CLOSE}: {shown}")
        if isinstance(batches, EvalBatches) and batches.share():
            console.say(
                f"  evaluated on {batches.share()} (training.eval_max_examples)"
            )
        for line in data_warnings(kind, counts) if cluster.is_primary() else ():
            console.warn(line)
    if line := updates.scaling_line(run.cfg):
        console.say(line)
    if run.updates.leafwise is not None:
        console.say("each layer is updated inside the backward pass")
    elif optim.OPTIMIZERS[run.cfg.optimizer.name].fused:
        console.say(
            f"{run.cfg.optimizer.name} updates after the whole backward pass here; it "
            "saves memory with adapter.method full and no accumulation"
        )
    console.say(
        f"steps: {run.steps} of {run.cfg.training.batch_size} sequences, "
        f"{run.batches.epoch(run.steps):.2f} epochs"
    )
    line = updates.rate_warning(run.cfg, run.updates.rate, run.steps)
    if line and cluster.is_primary():
        console.warn(line)
