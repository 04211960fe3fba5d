"""TRL's configurations of preference training, told apart by their own keys.

Their JSON does not name its class. By the configurations of TRL 1.16, and keys that
earlier ones had: https://huggingface.co/docs/trl
"""

from collections.abc import Mapping
from typing import Any

from jaxpeft.assembly.configuration import TABLES
from jaxpeft.convert_config.draft import Draft, Idle, Row, Without, truth
from jaxpeft.convert_config.preferences import (
    OF_SFT,
    ONLINE,
    in_twos,
    without_dropout,
)

# A trainer: keys that its configuration has and those below it here do not.
TRAINERS: dict[str, tuple[str, ...]] = {
    "online": ("num_generations", "num_ppo_epochs", "missing_eos_penalty", "lmbda"),
    "bco": ("prompt_sample_size",),
    "prm": ("step_separator",),
    "kto": ("desirable_weight",),
    "cpo": ("cpo_alpha",),
    "reward": ("center_rewards_coefficient",),
    "dpo": ("f_divergence_type", "loss_weights", "precompute_ref_log_probs"),
    "orpo": ("max_completion_length",),
}
# Whose records are pairs of answers.
PAIRS = ("dpo", "orpo", "cpo", "reward")
DPO_LOSSES = ("sigmoid", "hinge", "ipo", "robust")
LIKELIHOOD = "sft"  # a loss of the chosen answer beside another one
CPO_LOSSES = ("sigmoid", "hinge", "ipo", "simpo")

ROUTER = Without("a router is not trained to spread tokens evenly: no such loss")
_REFERENCE = "the reference is the same model, in the same program"
_MASKS = "masks go by position; which token pads does not matter"
_CUT = (
    "a prompt that is too long loses its beginning, and half of data.max_length is "
    "left to it"
)

ROWS: dict[str, Row] = {
    **OF_SFT,
    "disable_dropout": Idle("say it with adapter.lora_dropout"),
    "precompute_ref_batch_size": Idle(_REFERENCE),
    "force_use_ref_model": Idle(_REFERENCE),
    "model_adapter_name": Idle(_REFERENCE),
    "ref_model_init_kwargs": Idle(_REFERENCE),
    "sync_ref_model": Without("the reference stays as it is, the whole run"),
    "ref_model_mixup_alpha": Idle("of sync_ref_model"),
    "ref_model_sync_steps": Idle("of sync_ref_model"),
    "f_divergence_type": Without("the divergence is reverse KL", (None, "reverse_kl")),
    "f_alpha_divergence_coef": Idle("of f_divergence_type"),
    "discopop_tau": Idle("of loss_type discopop"),
    "use_weighting": Without("pairs are not weighed by their probability (WPO)"),
    "ld_alpha": Without("all tokens of an answer count alike", (None, 1.0)),
    "alpha": Without("AlphaPO is not built; simpo is its case alpha 0", (None, 0)),
    "generate_during_eval": Without("training.samples writes answers"),
    "is_encoder_decoder": Idle("models here are decoders"),
    "padding_value": Idle(_MASKS),
    "label_pad_token_id": Idle(_MASKS),
    "max_prompt_length": Without(_CUT),
    "max_completion_length": Without(_CUT),
    "truncation_mode": Without(_CUT, (None, "keep_end")),
    "use_logits_to_keep": Idle("prompts and padding never have logits"),
    "use_liger_loss": Idle("logits of a whole batch never exist"),
    "router_aux_loss_coef": ROUTER,
    "tools": Idle("tools stand in the records: docs/data.md"),
    "base_model_attribute_name": Idle("the family says this"),
}


def trainer_of(keys: Mapping[str, Any]) -> str | None:
    """Which of TRL's trainers of preferences a JSON configures; None: another one.

    Args:
        keys: the content of the JSON.
    """
    for trainer, own in TRAINERS.items():
        if any(key in keys for key in own):
            return trainer
    return "dpo" if "beta" in keys else None


def objective(draft: Draft, trainer: str) -> None:
    """Sets the section `objective` of TRL's preference training.

    Args:
        draft: gives their keys and takes ours; its adapter is set.
        trainer: what `trainer_of` says.
    """
    if trainer in ("online", "bco", "prm"):
        key = next(key for key in TRAINERS[trainer] if key in draft.keys)
        draft.refuse(key, ONLINE if trainer == "online" else "is not built; use kto")
        return
    if draft.flag("disable_dropout", True):
        without_dropout(draft)
    {"dpo": _dpo, "kto": _kto, "orpo": _orpo, "cpo": _cpo, "reward": _reward}[trainer](
        draft
    )


def _number(draft: Draft, theirs: str, default: float, ours: str = "") -> None:
    draft.set(f"objective.{ours or theirs}", float(draft.number(theirs, default)))


def _dpo(draft: Draft) -> None:
    draft.set("objective.name", "dpo")
    _number(draft, "beta", 0.1)
    kinds, weights = _losses(draft)
    wanted = [kind for kind in kinds if kind != LIKELIHOOD]
    if len(wanted) != 1 or wanted[0] not in DPO_LOSSES:
        draft.refuse(
            "loss_type",
            f"can be one of {', '.join(DPO_LOSSES)} here, perhaps with sft beside it",
        )
        return
    draft.set("objective.loss_type", wanted[0])
    smoothing = float(draft.number("label_smoothing", 0.0))
    if smoothing:
        heeds = wanted[0] == "robust"
        remark = "" if heeds else f"TRL 1.16 heeds it for robust alone, not {wanted[0]}"
        draft.set("objective.label_smoothing", smoothing, remark)
    own = weights[kinds.index(wanted[0])]
    likelihood = weights[kinds.index(LIKELIHOOD)] if LIKELIHOOD in kinds else 0.0
    likelihood = float(draft.number("rpo_alpha", likelihood))
    if own <= 0:
        draft.refuse("loss_weights", "the loss of the pairs must weigh more than 0")
    elif likelihood or own != 1:
        remark = f"the whole loss is {own:g} times as large there" * (own != 1)
        draft.set("objective.sft_weight", likelihood / own, remark)
    _reference(draft)


def _losses(draft: Draft) -> tuple[list[str], list[float]]:
    """The names of DPO's losses and their weights, which may be one name alone."""
    kinds = draft.take("loss_type", ["sigmoid"])
    kinds = [str(kind) for kind in (kinds if isinstance(kinds, list) else [kinds])]
    weights = draft.take("loss_weights", [1.0] * len(kinds))
    try:
        weights = [float(weight) for weight in weights]
        if len(weights) != len(kinds):
            raise ValueError
    except (TypeError, ValueError):
        draft.refuse(
            "loss_weights", f"must be {len(kinds)} numbers, as loss_type names"
        )
        weights = [1.0] * len(kinds)
    return kinds, weights


def _reference(draft: Draft) -> None:
    full = TABLES["adapter"][draft.settings["adapter.method"]].gives_model
    kind = "start" if full or draft.given("ref_adapter_name") else "adapter_off"
    if truth(draft.take("reference_free", False)) is True:
        kind = "none"
    draft.set("objective.reference", kind)
    before = truth(draft.take("precompute_ref_log_probs", False)) is True
    if before and kind != "none":
        draft.set("objective.precompute_reference", True)


def _kto(draft: Draft) -> None:
    draft.set("objective.name", "kto")
    in_twos(draft)
    _number(draft, "beta", 0.1)
    _number(draft, "desirable_weight", 1.0)
    _number(draft, "undesirable_weight", 1.0)
    draft.choice("loss_type", "kto", ("kto",))
    _reference(draft)


def _orpo(draft: Draft) -> None:
    draft.set("objective.name", "orpo")
    _number(draft, "beta", 0.1)


def _cpo(draft: Draft) -> None:
    loss = draft.choice("loss_type", "sigmoid", CPO_LOSSES)
    _number(draft, "beta", 0.1)
    smoothing = float(draft.number("label_smoothing", 0.0))
    if smoothing:
        draft.set("objective.label_smoothing", smoothing)
    {"simpo": _simpo}.get(loss, _with_likelihood)(draft, loss)


def _simpo(draft: Draft, loss: str) -> None:
    draft.set("objective.name", loss)
    _number(draft, "simpo_gamma", 0.5, "gamma")
    _number(draft, "cpo_alpha", 1.0, "sft_weight")


def _with_likelihood(draft: Draft, loss: str) -> None:
    draft.set("objective.name", "cpo")
    draft.skip("simpo_gamma", "of loss_type simpo")
    draft.set("objective.loss_type", loss)
    _number(draft, "cpo_alpha", 1.0)


def _reward(draft: Draft) -> None:
    draft.set("objective.name", "reward")
    if draft.given("center_rewards_coefficient"):
        _number(draft, "center_rewards_coefficient", 0.0)
