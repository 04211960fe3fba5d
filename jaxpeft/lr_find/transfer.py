"""How a rate that was found for one run moves to another: rules, each with its source.

No rule is more than a first guess; each says what it rests on. What none of them covers
(another optimizer, other data) is said as such.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxpeft import adapters, models, optim, tree
from jaxpeft.config import RunConfig

# LoRA's alpha in the runs behind `_FULL`: the update is alpha / r times the product.
_ALPHA = 32.0
_FULL = 10.0  # LoRA's best rate over that of full fine-tuning
_SHORT_FULL = 15.0  # the same in runs of fewer steps than
_SHORT = 100
# Powers that best rates go with in docs/calibration.jsonl: rate_rules.py --transfer.
_RANK = -0.42
_SCALE = -0.58
_STEPS = -0.33
_BATCH = 0.25  # between none, as measured from 4 to 16 in short runs, and the root
_SIZE_FULL = -0.5
_SIZE_LORA = -0.21  # scripts/public_rates.py
_BETWEEN = 3.0  # times the guess on either side: what public sweeps miss such rules by
_KEYS = ("r", "lora_alpha", "use_rslora")


@dataclass(frozen=True)
class Move:
    """What one difference between two runs does to the rate.

    Attributes:
        what: the difference, in words.
        factor: by which the rate is multiplied; None: there is no rule.
        why: the rule and its source, or what to do without one.
    """

    what: str
    factor: float | None
    why: str

    def __str__(self) -> str:
        factor = "no rule" if self.factor is None else f"x {self.factor:.3g}"
        return f"{factor:<8} {self.what}: {self.why}"


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    Attributes:
        cfg: its configuration.
        folder: of its model.
    """

    cfg: RunConfig
    folder: Path


def moves(known: Side, wanted: Side) -> list[Move]:
    """What differs between two runs, as far as it moves the rate.

    Args:
        known: the run whose rate is known.
        wanted: the one that a rate is wanted for.
    """
    found = (rule(known, wanted) for rule in _RULES)
    return [move for move in found if move is not None]


def carried(rate: float, found: list[Move]) -> float:
    """The rate that the rules give, as a person would write it.

    Args:
        rate: the known one.
        found: what `moves` returns.
    """
    factors = (1.0 if move.factor is None else move.factor for move in found)
    return float(f"{rate * math.prod(factors):.2g}")


def _optimizer(known: Side, wanted: Side) -> Move | None:
    names = [side.cfg.optimizer.name for side in (known, wanted)]
    before, after = map(optim.OPTIMIZERS.resolve, names)
    if before == after:
        return None
    what = f"optimizer {before} to {after}"
    if len({optim.OPTIMIZERS[name].steps_of or name for name in (before, after)}) == 1:
        return Move(what, 1.0, "the same steps, whose state is held in another form")
    return Move(
        what,
        None,
        "rates of different optimizers have nothing in common; run "
        "`python -m jaxpeft.lr_find --config FILE` with the new one",
    )


def _batch(known: Side, wanted: Side) -> Move | None:
    before, after = (side.cfg.training.batch_size for side in (known, wanted))
    if before == after:
        return None
    ratio = after / before
    if optim.OPTIMIZERS[wanted.cfg.optimizer.name].linear:
        factor, why = ratio, "in proportion, as SGD's (Goyal et al. 2017)"
    else:
        factor = ratio**_BATCH
        why = (
            f"with the power of {_BATCH:g}: between the square root of Adam's theory "
            "(Malladi et al. 2022) and none, as measured from 4 to 16 in short runs"
        )
    return Move(f"batch {before} to {after}", factor, why)


def _lora(side: Side) -> dict[str, Any] | None:
    """The rank, alpha and rsLoRA of a run; None: its method has none of them."""
    method, own = side.cfg.adapter.method, side.cfg.adapter.options
    known = adapters.TABLE.parameters(method)
    if not all(key in known for key in _KEYS):
        return None
    return {key: own.get(key, known[key].default) for key in _KEYS}


def _scale(lora: Mapping[str, Any]) -> float:
    """What the product of LoRA's two factors is multiplied by."""
    rank = lora["r"]
    return float(lora["lora_alpha"]) / (math.sqrt(rank) if lora["use_rslora"] else rank)


def _rank(known: Side, wanted: Side) -> Move | None:
    before, after = _lora(known), _lora(wanted)
    if before is None or after is None or before == after:
        return None
    what = f"{_told(before)} to {_told(after)}"
    if optim.OPTIMIZERS[wanted.cfg.optimizer.name].factors:
        return Move(what, 1.0, "this optimizer is made so that its rate stays")
    ranks, scales = after["r"] / before["r"], _scale(after) / _scale(before)
    return Move(
        what,
        ranks**_RANK * scales**_SCALE,
        f"rank^{_RANK:g} x (alpha/rank)^{_SCALE:g}, as measured on small models; in "
        f"theory it would be x {1 / (ranks * scales):.3g}, inversely to the product of "
        "both (arXiv 2602.06204)",
    )


def _told(lora: Mapping[str, Any]) -> str:
    """Rank and alpha, in words."""
    more = ", rsLoRA" if lora["use_rslora"] else ""
    return f"rank {lora['r']} and alpha {lora['lora_alpha']:g}{more}"


def _method(known: Side, wanted: Side) -> Move | None:
    before, after = (side.cfg.adapter.method for side in (known, wanted))
    loras = _lora(known), _lora(wanted)
    if before == after or all(loras):
        return None
    what = f"method {before} to {after}"
    wholes = [adapters.TABLE[name].gives_model for name in (before, after)]
    lora = loras[0] or loras[1]
    if lora is None or not any(wholes):
        return Move(what, None, "no rule is known; run lr_find for it")
    steps = wanted.cfg.training.max_steps
    times = _SHORT_FULL if steps is not None and steps < _SHORT else _FULL
    ratio = times * (_scale(lora) * lora["r"] / _ALPHA) ** _SCALE
    return Move(
        what,
        ratio if wholes[0] else 1 / ratio,
        f"LoRA of alpha {_ALPHA:g} takes {_FULL:g} times the rate of full fine-tuning, "
        f"{_SHORT_FULL:g} in runs under {_SHORT} steps ('LoRA Without Regret', 2025); "
        "small models measured here: 0.3 to 7 times",
    )


def _model(known: Side, wanted: Side) -> Move | None:
    if known.folder == wanted.folder:
        return None
    before, after = (_parameters(side) for side in (known, wanted))
    if before == after:
        return None
    method = wanted.cfg.adapter.method
    what = f"model of {before / 1e9:.3g} to {after / 1e9:.3g} billion parameters"
    if _lora(wanted) is None and not adapters.TABLE[method].gives_model:
        return Move(what, None, f"no rule is known for {method}; run lr_find for it")
    if _lora(wanted) is None:
        power, why = _SIZE_FULL, "parameters^-0.5 (Tinker's rule for full fine-tuning)"
    else:
        power = _SIZE_LORA
        why = (
            f"parameters^{power:g}, fitted to a public sweep of LoRA over 34 models of "
            "1 to 1000 billion, of which single ones are up to 2.4 times off"
        )
    return Move(what, (after / before) ** power, why)


def _parameters(side: Side) -> int:
    shapes = models.param_specs(models.config(side.folder))
    return sum(math.prod(spec.shape) for _, spec in tree.walk(shapes))


def _steps(known: Side, wanted: Side) -> Move | None:
    before, after = (side.cfg.training.max_steps for side in (known, wanted))
    if not before or not after or max(before, after) < 2 * min(before, after):
        return None
    return Move(
        f"steps {before} to {after}",
        (after / before) ** _STEPS,
        f"steps^{_STEPS:g}, as measured from 60 to 300: a longer run wants a lower "
        "rate, as in pre-training too (arXiv 2409.19913)",
    )


_RULES: tuple[Callable[[Side, Side], Move | None], ...] = (
    _optimizer,
    _method,
    _rank,
    _batch,
    _model,
    _steps,
)


def describe(
    directory: Path, rate: float, found: list[Move], factor: float = 1.0
) -> list[str]:
    """The lines for a person; the last one goes into the YAML.

    Args:
        directory: of the run whose rate is known.
        rate: that rate, of its steps.
        found: what `moves` returns.
        factor: by which the other run's `training.lr_scaling` multiplies the rate of
            its configuration.
    """
    new = carried(rate / factor, found)
    lines = [f"{directory}: {rate:g}", *map(str, found)]
    if factor != 1:
        lines.append(f"over {factor:g}, by which training.lr_scaling multiplies it")
    if not found:
        lines.append("nothing differs that a rule is known for")
        return [*lines, f"optimizer: {{learning_rate: {new:g}}}"]
    if any(move.factor is None for move in found):
        return [*lines, "a range test has to say the rate: leave --from out"]
    low, high = (float(f"{new * times:.1g}") for times in (1 / _BETWEEN, _BETWEEN))
    return [
        *lines,
        "a first guess, as rules are; to make sure, sweep around it: "
        f"--grid optimizer.learning_rate={low:g},{new:g},{high:g}",
        f"optimizer: {{learning_rate: {new:g}}}",
    ]
