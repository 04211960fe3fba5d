"""LoRA+: a higher learning rate for the second factor (Hayou et al., 2024)."""

import re
from collections.abc import Callable
from typing import Any

import optax

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.optim.ranges import problems_of


def lora_plus(
    tx_for_lr: Callable[[optax.ScalarOrSchedule], optax.GradientTransformation],
    learning_rate: optax.ScalarOrSchedule,
    ratio: float,
    pattern: str = r"(.*\.)?b",
) -> optax.GradientTransformationExtraArgs:
    """Two optimizers of one kind, one of them at `ratio` times the learning rate.

    Each of the two sees its own leaves only, and whatever it computes over a whole
    tree, such as a global norm, is over those. State: that of the two.

    >>> tx = lora_plus(lambda rate: adamw(rate, weight_decay=0.0), 2e-4, ratio=16)

    For the optimizers of this package `Layout(groups=(Group(pattern, ratio),))` does
    the same in one transformation.

    Args:
        tx_for_lr: from a learning rate, a number or a schedule, to a transformation.
        learning_rate: the lower rate, a number or a schedule.
        ratio: the higher rate over the lower one, above 0. The paper advises 16 or so.
        pattern: a regular expression for the whole dotted names of the leaves that
            train at the higher rate; by default those called `b`, LoRA's second
            factors, which start at zero.

    Raises:
        InputError: for a ratio that is no number above 0, and at `init` where no leaf
            matches.
    """
    if problems := list(problems_of("ratio", ratio)):
        raise InputError(*problems)

    def labels(params: Any) -> Any:
        def label(name: str, _: Any) -> str:
            return "higher" if re.fullmatch(pattern, name) else "base"

        names = [name for name, _ in tree.named_leaves(params, tree.is_box)]
        if names and not any(re.fullmatch(pattern, name) for name in names):
            raise InputError(
                f"optimizer.pattern: found {pattern!r}; no parameter that trains has "
                f"a name that matches it; the names are such as {', '.join(names[:3])}"
            )
        return tree.map_named(label, params, tree.is_box)

    higher = tx_for_lr(_scaled(learning_rate, ratio))
    return optax.partition({"base": tx_for_lr(learning_rate), "higher": higher}, labels)


def _scaled(rate: optax.ScalarOrSchedule, ratio: float) -> optax.ScalarOrSchedule:
    if not callable(rate):
        return ratio * rate
    return lambda count: ratio * rate(count)
