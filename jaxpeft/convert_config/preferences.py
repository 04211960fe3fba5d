"""What LLaMA-Factory's stages that learn from preferences minimise, as our objective.

By its trainers of `dpo`, `kto` and `rm`:
https://github.com/hiyouga/LLaMA-Factory/tree/main/src/llamafactory/train
"""

from typing import Any

from jaxpeft.assembly.configuration import TABLES
from jaxpeft.convert_config.draft import Draft, Row, Without, names

ONLINE = (
    "no answers are written while training here; learn from answers that are written "
    "already with dpo, kto or orpo"
)
LOSSES = ("sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo")
# In preference training there dropout is off, whatever the adapter says.
NO_DROPOUT = "dropout is off there while preferences are learned"

_OF_SFT = "is of objective sft alone; leave it out, or train so before"
# Keys of both tools that change what supervised training minimises.
OF_SFT: dict[str, Row] = {
    "label_smoothing_factor": Without(_OF_SFT),
    "neftune_noise_alpha": Without(_OF_SFT),
    "use_dft_loss": Without(_OF_SFT),
}


def objective(draft: Draft, stage: str) -> None:
    """Sets the section `objective` by the stage and the keys that belong to it.

    Args:
        draft: gives their keys and takes ours; its model and adapter are set.
        stage: theirs; `sft` and `pt` have no keys of their own.
    """
    of_stage = {"dpo": _pairs, "kto": _labelled, "rm": _reward}
    if stage in of_stage:
        of_stage[stage](draft)


def without_dropout(draft: Draft) -> None:
    """Takes back the dropout of an adapter, where their trainer switches it off.

    Args:
        draft: whose adapter is set.
    """
    if draft.settings.pop("adapter.lora_dropout", 0.0):
        draft.remark("objective.name", NO_DROPOUT)


def in_twos(draft: Draft) -> None:
    """Gives the parts of a batch two answers at least, which kto weighs together.

    Args:
        draft: whose batch is set.
    """
    said = draft.settings
    size = max(2, said.get("training.batch_size", 2))
    parts = said.get("training.gradient_accumulation_steps", 1)
    if size // parts < 2:
        fewer = max(n for n in range(1, size // 2 + 1) if size % n == 0)
        remark = "a part has two answers or more here: each is weighed by the next"
        draft.set("training.batch_size", size)
        draft.set("training.gradient_accumulation_steps", fewer, remark)
    if said.get("data.eval_batch_size") == 1:
        draft.set("data.eval_batch_size", 2)


def _reward(draft: Draft) -> None:
    remark = "the head is a matrix without a bias, as PEFT saves it: `score`"
    draft.set("objective.name", "reward", remark)


def _pairs(draft: Draft) -> None:
    loss = draft.choice("pref_loss", "sigmoid", LOSSES)
    without_dropout(draft)
    others = {"orpo": _orpo, "simpo": _simpo, "kto_pair": _unbuilt}
    others.get(loss, _dpo)(draft, loss)
    _beta(draft)
    for key in ("pref_bco_weight", "ld_alpha"):
        if draft.number(key, 0.0):
            draft.lack(key, "is not built; the loss goes without it")


def _dpo(draft: Draft, loss: str) -> None:
    draft.set("objective.name", "dpo")
    draft.set("objective.loss_type", loss)
    smoothing = float(draft.number("dpo_label_smoothing", 0.0))
    if smoothing:
        draft.set("objective.label_smoothing", smoothing)
    draft.set("objective.reference", _reference(draft))
    _likelihood(draft)


def _orpo(draft: Draft, loss: str) -> None:
    draft.set("objective.name", loss)
    if draft.number("pref_ftx", 0.0):
        draft.lack("pref_ftx", "the likelihood of the chosen answer is in orpo already")


def _simpo(draft: Draft, loss: str) -> None:
    draft.set("objective.name", loss)
    draft.set("objective.gamma", float(draft.number("simpo_gamma", 0.5)))
    _likelihood(draft)


def _unbuilt(draft: Draft, loss: str) -> None:
    draft.refuse(
        "pref_loss",
        "is not built; use sigmoid, or stage: kto with a label for each answer",
    )


def _likelihood(draft: Draft) -> None:
    weight = float(draft.number("pref_ftx", 0.0))
    if weight:
        remark = "each token counts alike; there each answer does"
        draft.set("objective.sft_weight", weight, remark)


def _labelled(draft: Draft) -> None:
    draft.set("objective.name", "kto")
    in_twos(draft)
    without_dropout(draft)
    _beta(draft)
    for theirs, ours in (("chosen", "desirable"), ("rejected", "undesirable")):
        weight = float(draft.number(f"kto_{theirs}_weight", 1.0))
        draft.set(f"objective.{ours}_weight", weight)
    draft.set("objective.reference", _reference(draft))
    if draft.number("pref_ftx", 0.0):
        draft.lack("pref_ftx", "kto has no likelihood beside it; sft goes before it")


def _beta(draft: Draft) -> None:
    draft.set("objective.beta", float(draft.number("pref_beta", 0.1)))


def _reference(draft: Draft) -> str:
    """What answers are weighed against: the base, or the model before training."""
    full = TABLES["adapter"][draft.settings["adapter.method"]].gives_model
    own = "start" if full else "adapter_off"
    model, adapters = (
        draft.take("ref_model"),
        _adapters(draft.take("ref_model_adapters")),
    )
    bits = draft.take("ref_model_quantization_bit")
    if model is None:
        return own
    start = draft.settings.get("adapter.init_from")
    if bits is not None and bits != draft.keys.get("quantization_bit"):
        draft.lack(
            "ref_model_quantization_bit",
            "the reference is the model itself, stored as model.quantization says",
        )
    if model == draft.settings.get("model.path") and not adapters:
        return own
    if model == draft.settings.get("model.path") and adapters == [start]:
        return "start"
    draft.refuse(
        "ref_model",
        "the reference is the model that trains: its base (objective.reference: "
        "adapter_off) or as it was at the start (start); begin with that model, or "
        "merge its adapter into it: `jaxpeft export --to merged`",
    )
    return own


def _adapters(value: Any) -> list[str]:
    return [] if value is None else names(value)
