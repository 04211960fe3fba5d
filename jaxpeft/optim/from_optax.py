"""Optimizers of optax and optax.contrib, by the names that they have there.

What they take besides the learning rate are their keys. Like our own they compute in
float32, leave biases and norms undecayed, and see the layers of a stack apart.
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from jaxpeft import tree
from jaxpeft.errors import InputError
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.leaves import check_real, decaying
from jaxpeft.optim.optax_keys import Inner, is_dtype, keys_of
from jaxpeft.optim.ranges import is_zero, problems_of

PREFIX = "optax."
DIRECTION = "scale_by_"  # the names of what the rate has still to multiply
# Those that take norms, means or products over a tensor, so that layers must be apart.
BY_TENSOR = {
    *("adafactor", "fromage", "galore", "lamb", "lars", "muon", "novograd", "sm3"),
    *("scale_by_distance_over_gradients", "scale_by_factored_rms", "scale_by_galore"),
    "scale_by_muon",
    *("scale_by_novograd", "scale_by_param_block_norm", "scale_by_param_block_rms"),
    *("scale_by_sm3", "scale_by_stddev", "scale_by_trust_ratio"),
}
# The rate that goes with those that find theirs themselves, and multiplies it.
FREE = {
    **dict.fromkeys(("cocob", "dadapt_adamw", "dog", "dowg", "mechanize", "momo"), 1.0),
    **{"momo_adam": 0.01, "polyak_sgd": 1.0, "prodigy": 1.0},
    "scale_by_distance_over_gradients": 1.0,
}
# Those that turn to nan where the first rates are zero, which they divide by.
DIVIDE_BY_RATE = ("dadapt_adamw", "prodigy")
OWN_RATE = {"polyak_sgd": "scaling"}  # what they call the learning rate
WRAPS = {"mechanize": "base_optimizer"}  # what has the learning rate in their place
GIVEN = ("learning_rate", "mask", "stacked")  # by the run itself
_CHECKED = ("b1", "b2", "b3", "eps", "momentum", "weight_decay")
_LINE = "it computes the loss again within an update, to search along a line"
_PART = "it is a part of an optimizer; name the whole one"
_NUMBER = "its rate is one number, and a run's goes by a schedule"
_FREE = "its averages would not be evaluated and kept; use our own of that name"
REFUSED = {
    **dict.fromkeys(("lbfgs", "scale_by_lbfgs"), _LINE),
    "scale_by_backtracking_linesearch": _LINE,
    "scale_by_zoom_linesearch": _LINE,
    **dict.fromkeys(("scale_by_learning_rate", "scale_by_schedule"), _PART),
    "scale_by_muon": "it takes matrices alone; use optax.contrib.muon",
    "optimistic_adam": f"{_NUMBER}; use optax.optimistic_adam_v2",
    "rprop": _NUMBER,
    "sm3": f"{_NUMBER}; use optax.scale_by_sm3",
    "scale_by_cocob": _PART,
    **dict.fromkeys(("scale_by_madgrad", "scale_by_polyak", "scale_by_rprop"), _PART),
    "dpsgd": "it takes each sequence's gradient, and a step has their mean alone",
    "lookahead": "it trains two copies of the parameters, and a run has one",
    "sam": "it takes two gradients for a step",
    "sophia": "it asks for the loss as a function, to estimate its curvature",
    **dict.fromkeys(("schedule_free_adamw", "schedule_free_sgd"), _FREE),
    "schedule_free": "its averages would not be evaluated and kept; use one of our "
    "own, such as 'schedule_free_adamw'",
}


class Found(NamedTuple):
    """An optimizer of optax.

    Attributes:
        make: (learning_rate, mask, stacked, **its keys) -> the transformation; `mask`
            says what decays, and `stacked` which leaves stack layers, as in `Layout`.
        rate: the learning rate that goes with it where it finds its own; else None.
        divides_by_rate: it divides by its rate, which may not begin at zero.
    """

    make: Callable[..., optax.GradientTransformationExtraArgs]
    rate: float | None
    divides_by_rate: bool = False


@functools.cache
def find(name: str) -> Found | str | None:
    """The optimizer of a name such as `optax.adamax` or `optax.contrib.dog`.

    Args:
        name: any name; `optax.NAME` also finds what is in optax.contrib.

    Returns:
        The optimizer; why it cannot be had, in words; or None for a name that does not
        begin with "optax.".
    """
    if not name.startswith(PREFIX):
        return None
    short = name.removeprefix(PREFIX).removeprefix("contrib.")
    homes = (optax.contrib,) if "contrib" in name else (optax, optax.contrib)
    functions = (getattr(home, short, None) for home in homes)
    function = next(filter(_is_function, functions), None)
    if short.startswith("_"):
        function = None
    if short in REFUSED:
        return REFUSED[short]
    if function is None:
        near = difflib.get_close_matches(short, names(), 1)
        also = f"; did you mean '{PREFIX}{near[0]}'?" if near else ""
        return f"optax has no optimizer of that name{also}"
    if not _is_optimizer(short, function):
        return "it has no learning rate, and is no optimizer"
    made = _component(short, function)
    return Found(made, FREE.get(short), short in DIVIDE_BY_RATE)


def names() -> list[str]:
    """The names in optax and optax.contrib that `find` has an optimizer for."""
    known = {
        name: value
        for home in (optax.contrib, optax)
        for name, value in vars(home).items()
        if _is_function(value) and not name.startswith("_")
    }
    usable = (n for n, f in known.items() if n not in REFUSED and _is_optimizer(n, f))
    return sorted(usable)


def _is_function(x: Any) -> bool:
    return inspect.isfunction(x) or isinstance(x, functools.partial)


def _is_optimizer(name: str, function: Callable) -> bool:
    takes = inspect.signature(function).parameters
    has_rate = "learning_rate" in takes or name in FREE
    return has_rate or name.startswith(DIRECTION)


def _component(name: str, function: Callable) -> Callable:
    """The function that makes an optimizer, with a signature that can be checked."""
    keys = keys_of(function)
    keys.pop(OWN_RATE.get(name, "learning_rate"), None)
    decays = any(key.startswith("weight_decay") for key in keys)
    if name in WRAPS:
        default = keys[WRAPS[name]].replace(default=f"{PREFIX}adamw")
        keys[WRAPS[name]] = default
    elif not decays:
        keyword = inspect.Parameter.KEYWORD_ONLY
        keys["weight_decay"] = inspect.Parameter(
            "weight_decay", keyword, default=0.0, annotation=float
        )

    def make(
        learning_rate: optax.ScalarOrSchedule,
        mask: Any = None,
        stacked: str | None = None,
        **options: Any,
    ) -> optax.GradientTransformationExtraArgs:
        problems = [
            problem
            for key, value in options.items()
            if key in _CHECKED and value != keys[key].default
            for problem in problems_of(key, value, keys[key].default)
        ]
        if problems:
            raise InputError(*problems)
        given = {k: p.default for k, p in keys.items()} | options
        given = {k: x for k, x in given.items() if x is not inspect.Parameter.empty}
        own = given if decays else {k: given[k] for k in given if k != "weight_decay"}
        try:
            tx = _made(name, function, learning_rate, mask, own)
        except (ValueError, TypeError) as error:
            raise InputError(
                f"optimizer.name: found '{PREFIX}{name}'; optax refuses its settings: "
                f"{error}"
            ) from error
        weight_decay = given.get("weight_decay", 0.0)
        if name.startswith(DIRECTION) or (not decays and weight_decay):
            tx = _completed(name, tx, learning_rate, weight_decay, mask)
        # What goes around another decays it by other means.
        masked = not decays or name in WRAPS
        masked |= any(key.endswith("mask") for key in _takes(function))
        layout = Layout(stacked) if name in BY_TENSOR else None
        return _as_ours(tx, layout, None if masked or is_zero(weight_decay) else mask)

    parameters = inspect.signature(make).parameters
    first = [parameters[key] for key in GIVEN]
    make.__signature__ = inspect.Signature([*first, *keys.values()])
    make.__doc__ = inspect.getdoc(function)
    make.__name__ = name
    return make


def _takes(function: Callable) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _made(
    name: str, function: Callable, learning_rate: Any, mask: Any, options: dict
) -> optax.GradientTransformationExtraArgs:
    """The call of optax's function, with what the run itself gives."""
    options = {k: tuple(x) if isinstance(x, list) else x for k, x in options.items()}
    dtypes = {k for k, x in options.items() if is_dtype(k) and isinstance(x, str)}
    options |= {key: jnp.dtype(options[key]) for key in dtypes}
    if name in WRAPS:
        key = WRAPS[name]
        options[key] = _inner(key, options[key], learning_rate, mask)
    takes, rate = _takes(function), OWN_RATE.get(name, "learning_rate")
    if rate in takes:
        options[rate] = learning_rate
    for key in ("mask", "weight_decay_mask"):
        if key in takes and mask is not None:
            options[key] = mask
    return optax.with_extra_args_support(function(**options))


def _inner(key: str, given: Inner, learning_rate: Any, mask: Any) -> Any:
    """The transformation that another one goes around."""
    section = {"name": given} if isinstance(given, str) else dict(given)
    name = section.pop("name", None)
    found = find(name) if isinstance(name, str) else None
    if not isinstance(found, Found):
        why = f"; {found}" if found else ""
        raise InputError(
            f"optimizer.{key}: found {name!r}{why}; name an optimizer of optax, such "
            f"as {PREFIX}adamw, or give a mapping with its name and keys"
        )
    known = inspect.signature(found.make).parameters
    if unknown := [k for k in section if k not in known or k in GIVEN]:
        raise InputError(
            f"optimizer.{key}.{unknown[0]}: found {section[unknown[0]]!r}; is not a "
            f"key of {name!r}"
        )
    return found.make(learning_rate, mask, **section)


def _completed(
    name: str, tx: Any, learning_rate: Any, weight_decay: float, mask: Any
) -> optax.GradientTransformationExtraArgs:
    """A transformation with the rate, or the decay, that it does not have itself."""
    decay = optax.add_decayed_weights(weight_decay, mask)
    rate = optax.scale_by_learning_rate(learning_rate)
    if name.startswith(DIRECTION):
        return optax.chain(tx, decay, rate)
    shrink = optax.chain(optax.set_to_zero(), decay, rate)

    def init(params: Any) -> Any:
        return tx.init(params), shrink.init(params)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        moved, first = tx.update(updates, state[0], params, **extra)
        shrunk, second = shrink.update(updates, state[1], params)
        return jax.tree.map(jnp.add, moved, shrunk), (first, second)

    return optax.GradientTransformationExtraArgs(init, update)


def _apart(params: Any, layout: Layout) -> dict[str, Any]:
    """The leaves by name, each layer of a stack by itself.

    Its number comes before the name, which ends as it did.
    """
    parts = {}
    for name, x in tree.named_weights(params):
        if layout.is_stacked(name) and x.ndim > 0:
            parts |= {f"{i}.{name}": x[i] for i in range(x.shape[0])}
        else:
            parts[name] = x
    return parts


def _together(parts: Mapping[str, Any], params: Any, layout: Layout) -> Any:
    """The tree like `params` that `_apart` took apart."""

    def whole(name: str, x: Any) -> Any:
        if name in parts:
            return parts[name]
        layers = [parts[f"{i}.{name}"] for i in range(x.shape[0])]
        return jnp.stack(layers) if layers else jnp.zeros(x.shape, jnp.float32)

    leaves = [whole(name, x) for name, x in tree.named_weights(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _as_ours(
    tx: optax.GradientTransformationExtraArgs, layout: Layout | None, unmasked: Any
) -> optax.GradientTransformationExtraArgs:
    """A transformation in float32, for which the layers of a stack may be apart.

    Args:
        tx: the transformation.
        layout: which leaves stack layers, which it has to see apart; None: it sees
            numbers alone.
        unmasked: which leaves are not to decay where it decays all; None: it is masked.
    """

    def prepared(x: Any) -> Any:
        x = jax.tree.map(lambda a: a.astype(jnp.float32), x)
        return x if layout is None else _apart(x, layout)

    def init(params: Any) -> Any:
        check_real(params)
        flags = jax.tree.leaves(decaying(unmasked, params))
        kept = [n for (n, _), f in zip(tree.named_weights(params), flags) if not f]
        if unmasked is not None and kept:
            raise InputError(
                "optimizer.weight_decay: optax decays all parameters there, and "
                f"{kept[0]} is one of those that should not; set weight_decay: 0.0, "
                "or decay_all: true"
            )
        # Arrays of their own: a buffer cannot be donated twice.
        return tx.init(
            jax.tree.map(lambda x: jnp.array(x, copy=True), prepared(params))
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "this optimizer's update needs the parameters: give params"
            )
        moved: Any
        moved, state = tx.update(prepared(updates), state, prepared(params), **extra)
        return moved if layout is None else _together(moved, params, layout), state

    return optax.GradientTransformationExtraArgs(init, update)
