"""How much arithmetic a program is: the products of matrices in it."""

import math
from collections.abc import Iterator
from typing import Any


def count(jaxpr: Any) -> int:
    """The floating-point operations of the matrix products in a jaxpr, on all devices.

    A multiplication and an addition are two; elementwise work, small beside them in a
    transformer, is left out. A scan counts as often as it turns, of a conditional the
    dearer branch, and of a loop whose length is not known one turn. A kernel is what it
    says itself, or a program for each point of its grid. (The compiler's own cost
    analysis counts the body of every loop once.)

    Args:
        jaxpr: a `Jaxpr` or a `ClosedJaxpr`.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "dot_general":
            total += _product(equation)
        if (said := equation.params.get("cost_estimate")) is not None:
            total += said.flops
            continue
        counts = [count(one) for one in inner_jaxprs(equation)]
        inner = max(counts, default=0) if _is_choice(equation) else sum(counts)
        total += inner * _times(equation)
    return total


def per_token(total: int, trainable: int, embedding: int) -> int:
    """The floating-point operations that training on a token takes, at least.

    Two for each parameter forwards, two more backwards for the gradient of what goes
    through it, and two more where it trains itself. Attention's products of tokens with
    tokens, and what remat computes once more, are left out.

    Args:
        total: parameters of the whole model.
        trainable: those that train.
        embedding: parameters of a table that is looked up in and multiplies nothing.
    """
    multiplied = total - embedding
    return 4 * multiplied + 2 * min(trainable, multiplied)


def inner_jaxprs(equation: Any) -> Iterator[Any]:
    """The jaxprs that an equation calls, loops over or chooses between."""
    for value in equation.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(one, "jaxpr", one)
            if hasattr(inner, "eqns"):
                yield inner


def _is_choice(equation: Any) -> bool:
    return equation.primitive.name == "cond"


def _times(equation: Any) -> int:
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "pallas_call":
        return math.prod(equation.params["grid_mapping"].grid)
    if equation.primitive.name == "shard_map":  # what each device does for itself
        sizes = equation.params["mesh"].shape
        own = next(v for k, v in equation.params.items() if k.endswith("manual_axes"))
        return math.prod(sizes[axis] for axis in own)
    return 1


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    return 2 * depth * math.prod(equation.outvars[0].aval.shape)
