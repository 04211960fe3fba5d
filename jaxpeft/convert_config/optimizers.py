"""The optimizers and schedules of transformers' Trainer, by their names there."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxpeft.assembly.configuration import TABLES
from jaxpeft.config import strict_yaml
from jaxpeft.convert_config.draft import Draft, names
from jaxpeft.errors import InputError, suggest

ADAM = ("b1", "b2", "eps")


@dataclass(frozen=True)
class Optimizer:
    """One of our optimizers that stands for one of theirs.

    Attributes:
        name: its name in our table.
        remark: what is not quite the same; empty: nothing.
        adam: which of its keys the Trainer fills with adam_beta1, adam_beta2 and
            adam_epsilon; optimizers left out have betas of their own.
        own: what the Trainer sets besides.
        fused: whether it updates a layer as soon as its gradient is there.
        decays: whether `weight_decay` reaches it; the Trainer hands some optimizers
            parameters of its own grouping, without it.
    """

    name: str
    remark: str = ""
    adam: tuple[str, ...] = ()
    own: Mapping[str, Any] = field(default_factory=dict)
    fused: bool = False
    decays: bool = True


_WHOLE_STATE = "its state is float32 here; adamw_8bit keeps 2 bytes a parameter"
_ADAMW = Optimizer("adamw", adam=ADAM)
_ADAMW_8BIT = Optimizer("adamw_8bit", adam=ADAM)
_PAGED = {"offload": True}
_LION = Optimizer("lion", adam=("b1", "b2"))
_RMSPROP = Optimizer("rmsprop")
_GALORE = Optimizer("galore", decays=False)
_GALORE_8BIT = replace(_GALORE, remark=_WHOLE_STATE)
_GALORE_FACTORED = replace(_GALORE, remark="the inner optimizer is Adam here")
_APOLLO = Optimizer(
    "apollo",
    "the betas and eps hold for all parameters, not for the projected ones alone",
    ADAM,
    {"rank": 128},
    decays=False,
)

OPTIMIZERS: dict[str, Optimizer] = {
    "adamw_hf": _ADAMW,
    "adamw_torch": _ADAMW,
    "adamw_torch_fused": _ADAMW,
    "adamw_torch_xla": _ADAMW,
    "adamw_torch_npu_fused": _ADAMW,
    "adamw_apex_fused": _ADAMW,
    "paged_adamw": replace(_ADAMW, own=_PAGED),
    "paged_adamw_32bit": replace(_ADAMW, own=_PAGED),
    "adamw_anyprecision": Optimizer("adamw", "its moments are float32 here", ADAM),
    "adamw_8bit": _ADAMW_8BIT,
    "adamw_bnb_8bit": _ADAMW_8BIT,
    "paged_adamw_8bit": replace(_ADAMW_8BIT, own=_PAGED),
    "adamw_torch_8bit": _ADAMW_8BIT,
    "adamw_torch_4bit": Optimizer("adamw_4bit", "", ADAM, {"block_size": 256}),
    "adafactor": Optimizer("adafactor"),
    "ademamix": Optimizer("ademamix", "", ADAM),
    "ademamix_8bit": Optimizer("ademamix", _WHOLE_STATE, ADAM),
    "paged_ademamix_32bit": Optimizer("ademamix", "", ADAM, _PAGED),
    "paged_ademamix_8bit": Optimizer("ademamix", _WHOLE_STATE, ADAM, _PAGED),
    "sgd": Optimizer("sgd"),
    "adagrad": Optimizer("adagrad"),
    "rmsprop": _RMSPROP,
    "rmsprop_bnb": _RMSPROP,
    "rmsprop_bnb_32bit": _RMSPROP,
    "rmsprop_bnb_8bit": Optimizer("rmsprop", _WHOLE_STATE),
    "lion_32bit": _LION,
    "paged_lion_32bit": replace(_LION, own=_PAGED),
    "lion_8bit": Optimizer("lion_8bit", adam=("b1", "b2")),
    "paged_lion_8bit": Optimizer("lion_8bit", "", ("b1", "b2"), _PAGED),
    "galore_adamw": _GALORE,
    "galore_adamw_8bit": _GALORE_8BIT,
    "galore_adafactor": _GALORE_FACTORED,
    "galore_adamw_layerwise": replace(_GALORE, fused=True),
    "galore_adamw_8bit_layerwise": replace(_GALORE_8BIT, fused=True),
    "galore_adafactor_layerwise": replace(_GALORE_FACTORED, fused=True),
    "apollo_adamw": _APOLLO,
    "apollo_adamw_layerwise": replace(_APOLLO, fused=True),
    "lomo": Optimizer("lomo", decays=False),
    "adalomo": Optimizer("adalomo", decays=False),
    "grokadamw": Optimizer("grokadamw"),
    "schedule_free_adamw": Optimizer("schedule_free_adamw", "", ADAM),
    "schedule_free_radam": Optimizer("schedule_free_radam", "", ADAM),
    "schedule_free_sgd": Optimizer("schedule_free_sgd"),
    "stable_adamw": Optimizer("stable_adamw", "", ADAM),
}

ONE_SIDE = "the smaller side of a matrix is always projected"

# Keys inside `optim_args`, where they are not ours.
ARGUMENTS = {"beta1": "b1", "beta2": "b2", "beta3": "b3"}
# Those that say nothing here: updates are float32 differences, moments float32 or
# codes.
IDLE_ARGUMENTS = (
    *("kahan_sum", "bf16_stochastic_round", "use_kahan_summation"),
    *("momentum_dtype", "variance_dtype", "compensation_buffer_dtype"),
)


@dataclass(frozen=True)
class Schedule:
    """One of our schedules that stands for one of theirs.

    Attributes:
        name: its name in our table.
        warms: whether it has a warmup.
    """

    name: str
    warms: bool = True


SCHEDULES: dict[str, Schedule] = {
    "linear": Schedule("linear"),
    "cosine": Schedule("cosine"),
    "cosine_with_restarts": Schedule("cosine_with_restarts"),
    "polynomial": Schedule("polynomial"),
    "constant": Schedule("constant", warms=False),
    "constant_with_warmup": Schedule("constant"),
    "inverse_sqrt": Schedule("inverse_sqrt"),
    "reduce_lr_on_plateau": Schedule("reduce_lr_on_plateau", warms=False),
    "cosine_with_min_lr": Schedule("cosine_with_min_lr"),
    "cosine_warmup_with_min_lr": Schedule("cosine_warmup_with_min_lr"),
    "warmup_stable_decay": Schedule("warmup_stable_decay"),
    "greedy": Schedule("greedy", warms=False),
}

# Keys inside `lr_scheduler_kwargs`, where they are not ours.
SCHEDULE_ARGUMENTS = {
    "num_decay_steps": "decay_steps",
    "num_stable_steps": "stable_steps",
}

_ADAM_KEYS = {"b1": "adam_beta1", "b2": "adam_beta2", "eps": "adam_epsilon"}
_ADAM_DEFAULTS = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}


def optimizer(draft: Draft, instead: Optimizer | None = None) -> None:
    """Sets the section `optimizer` from `optim` and all that belongs to it.

    Args:
        draft: gives their keys and takes ours.
        instead: the optimizer that stands in the place of that of `optim`.

    Raises:
        InputError: a value in the text of `optim_args` is no YAML.
    """
    chosen = OPTIMIZERS[draft.choice("optim", "adamw_torch", OPTIMIZERS)]
    chosen = instead or chosen
    draft.set("optimizer.name", chosen.name, chosen.remark)
    draft.set("optimizer.learning_rate", draft.number("learning_rate", 5e-5))
    _adam(draft, chosen)
    # The Trainer's default is 0, and that of some of ours is not.
    decay = draft.number("weight_decay", 0.0)
    if decay and not chosen.decays:
        draft.skip("weight_decay", f"the Trainer gives {chosen.name} none")
    draft.set("optimizer.weight_decay", decay if chosen.decays else 0.0)
    for key, value in chosen.own.items():
        draft.set(f"optimizer.{key}", value)
    _arguments(draft, chosen.name)
    norm = draft.number("max_grad_norm", 1.0)
    draft.set("optimizer.max_grad_norm", norm or None)
    if chosen.fused:
        draft.set("training.fused_backward", True)
    _targets(draft, chosen.name)


def _adam(draft: Draft, found: Optimizer) -> None:
    """The betas and epsilon of the Trainer, for an optimizer that takes them."""
    defaults = TABLES["optimizer"].parameters(found.name)
    takes = {key.removeprefix("adam_"): key for key in found.adam}
    for ours, theirs in _ADAM_KEYS.items():
        value = draft.number(theirs, _ADAM_DEFAULTS[ours])
        if ours not in takes:
            draft.skip(theirs, "the optimizer has settings of its own in its place")
        elif value != defaults[takes[ours]].default:
            draft.set(f"optimizer.{takes[ours]}", value)


def _arguments(draft: Draft, name: str) -> None:
    """`optim_args`: text such as `rank=64,scale=0.5`, or a mapping."""
    given = draft.take("optim_args") or {}
    if isinstance(given, str):
        pairs = [pair.partition("=") for pair in names(given)]
        given = {key.strip(): strict_yaml.parse_scalar(v) for key, _, v in pairs}
    if not isinstance(given, Mapping):
        draft.refuse("optim_args", "must be text such as rank=64,scale=0.5")
        return
    own = TABLES["optimizer"].keys(name)
    for theirs, value in given.items():
        ours = ARGUMENTS.get(theirs, theirs)
        if theirs in IDLE_ARGUMENTS or (theirs, value) == ("proj_type", "std"):
            draft.skip("optim_args", "of its settings some say nothing here")
        elif theirs == "proj_type":
            draft.lack("optim_args: proj_type", ONE_SIDE)
        elif theirs == "weight_decay":
            draft.skip("optim_args", "weight_decay beside it counts")
        elif ours in own:
            draft.set(f"optimizer.{ours}", _like_default(name, ours, value))
        else:
            draft.lack(
                f"optim_args: {theirs}", f"is not a key of {name!r}{suggest(ours, own)}"
            )


def _like_default(name: str, key: str, value: Any) -> Any:
    """A whole number as a fraction where the optimizer wants one: `scale=2`."""
    default = TABLES["optimizer"].parameters(name)[key].default
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and isinstance(default, float) else value


def _targets(draft: Draft, name: str) -> None:
    wanted = draft.take("optim_target_modules")
    if wanted is None:
        return
    if "target_modules" in TABLES["optimizer"].keys(name):
        draft.set("optimizer.target_modules", wanted)
    else:
        draft.lack("optim_target_modules", f"{name!r} treats all matrices alike")


def schedule(draft: Draft) -> None:
    """Sets the section `schedule` from `lr_scheduler_type` with its settings.

    Args:
        draft: gives their keys and takes ours; its `optimizer.name` is set.

    Raises:
        InputError: the text of `lr_scheduler_kwargs` is no YAML mapping.
    """
    chosen = draft.choice("lr_scheduler_type", "linear", SCHEDULES)
    ours, name = SCHEDULES[chosen], str(draft.settings["optimizer.name"])
    free = TABLES["optimizer"][name].averages
    if free and not TABLES["schedule"][ours.name].level:
        draft.set(
            "schedule.name",
            "constant",
            f"{name} averages its weights instead of lowering the rate; {chosen} "
            "beside it would do both",
        )
    else:
        draft.set("schedule.name", ours.name)
    # Of those that average, one warms up by itself and takes no steps for it.
    takes = "warmup_steps" in TABLES["optimizer"].parameters(name)
    warms = takes if free else ours.warms
    _warmup(draft, warms, name if free else chosen)
    if free:
        draft.skip("lr_scheduler_kwargs", "the rate is constant")
    else:
        _schedule_arguments(draft, ours.name)


def _warmup(draft: Draft, warms: bool, chosen: str) -> None:
    """Sets the warmup: steps win over a ratio; below 1 they are a ratio themselves."""
    steps, ratio = draft.number("warmup_steps", 0), draft.number("warmup_ratio", 0)
    if 0 < steps < 1:
        steps, ratio = 0, steps
    if not warms:
        for key in ("warmup_steps", "warmup_ratio"):
            draft.skip(key, f"{chosen} has no warmup")
    elif steps:
        draft.set("schedule.warmup_steps", int(steps))
    elif ratio:
        draft.set("schedule.warmup_ratio", ratio)


def _schedule_arguments(draft: Draft, name: str) -> None:
    given = draft.take("lr_scheduler_kwargs") or {}
    if isinstance(given, str):
        given = strict_yaml.parse_scalar(given, "lr_scheduler_kwargs")
    if not isinstance(given, Mapping):
        raise InputError(f"lr_scheduler_kwargs: found {given!r}; must be a mapping")
    own = TABLES["schedule"].keys(name)
    for theirs, value in given.items():
        ours = SCHEDULE_ARGUMENTS.get(str(theirs), str(theirs))
        if ours in own:
            draft.set(f"schedule.{ours}", value)
        else:
            draft.lack(
                f"lr_scheduler_kwargs: {theirs}",
                f"is not a key of {name!r}{suggest(ours, own)}",
            )
