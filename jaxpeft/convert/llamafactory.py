"""From LLaMA-Factory's YAML or JSON, by its documented keys (0.9.x).

https://github.com/hiyouga/LLaMA-Factory/tree/main/src/llamafactory/hparams
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpeft.convert import trainer
from jaxpeft.convert.datasets import PREFERENCES, TEXT_ONLY, read_sources, weigh
from jaxpeft.convert.draft import Draft, names
from jaxpeft.convert.llamafactory_rows import ROWS
from jaxpeft.convert.optimizers import ADAM, adam

# Stage: whether it can be trained here, or why not.
STAGES: dict[str, str | None] = {
    "sft": None,
    "pt": None,
    "rm": PREFERENCES,
    "dpo": PREFERENCES,
    "kto": PREFERENCES,
    "ppo": PREFERENCES,
}
METHODS, FREEZE = ("lora", "full"), "freeze"
# Kinds of checkpoints in few bits, which show in the name alone.
STORED = ("gptq", "awq", "aqlm")


def from_llamafactory(keys: Mapping[str, Any], devices: int | None = None) -> Draft:
    """What a file of LLaMA-Factory says, in our keys.

    keys: its content. devices: over how many the batch was spread, None: as many as
    `ray_num_workers` says, or one. Raises InputError, all problems at once, for what
    cannot be trained here: stages other than `sft` and `pt`, methods other than LoRA,
    its kinds, full fine-tuning and freezing layers, images.
    """
    draft = Draft(keys)
    stage = _stage(draft)
    method = _method(draft)
    _model(draft, method)
    if method == "lora":
        _lora(draft)
    _data(draft, pretraining=stage == "pt")
    workers = draft.whole("ray_num_workers", 1)
    trainer.translate(draft, devices or workers)
    _optimizer(draft)
    draft.settings.setdefault("data.max_length", 2048)
    draft.apply(ROWS)
    return draft


def _stage(draft: Draft) -> str:
    stage = draft.choice("stage", "sft", STAGES)
    reason = STAGES[stage]
    if reason:
        draft.refuse("stage", reason)
    if draft.flag("do_predict") and not draft.flag("do_train"):
        draft.refuse(
            "do_predict",
            "this file trains nothing; use `python -m jaxpeft.generate --run DIR "
            "--prompts FILE`, or `python -m jaxpeft.evaluate --run DIR`",
        )
    return stage


def _method(draft: Draft) -> str:
    kind = draft.take("finetuning_type", "lora")
    if kind == FREEZE:
        _freeze(draft)
        kind = "full"
    if kind not in METHODS:
        draft.refuse("finetuning_type", "can be lora, full or freeze here")
        kind = "lora"
    dora = draft.flag("use_dora")
    draft.set("adapter.method", "dora" if dora and kind == "lora" else kind)
    return kind


def _freeze(draft: Draft) -> None:
    """Some layers, or some of their modules, train whole and all else is frozen."""
    layers = draft.whole("freeze_trainable_layers", 2)
    if layers == 0:
        draft.refuse("freeze_trainable_layers", "name how many layers train")
    draft.set("adapter.trainable_layers", layers)
    modules = names(draft.take("freeze_trainable_modules", "all"))
    if modules != ["all"]:
        draft.set("adapter.target_modules", modules)
    if draft.given("freeze_extra_modules"):
        extra = names(draft.take("freeze_extra_modules"))
        draft.set("adapter.modules_to_save", extra)


def _model(draft: Draft, method: str) -> None:
    path = draft.take("model_name_or_path")
    if path is None:
        draft.refuse("model_name_or_path", "name the model")
        return
    draft.set("model.path", path)
    precision(draft, method)
    quantization(draft, str(path))
    if method == "full" and "model.quantization" in draft.settings:
        said = draft.given("quantization_bit")
        key = "quantization_bit" if said else "model_name_or_path"
        draft.refuse(key, "few bits cannot train; use lora, or leave this out")
    if draft.flag("disable_gradient_checkpointing"):
        draft.skip("gradient_checkpointing", "disable_gradient_checkpointing counts")
    else:
        draft.take("gradient_checkpointing")
        draft.set(
            "model.remat",
            "full",
            "gradient checkpointing, which is on there unless told otherwise; none or "
            "dots is faster where it fits",
        )


def precision(draft: Draft, method: str) -> None:
    """bf16, fp16 and pure_bf16: the dtype of base and activations."""
    half, pure = draft.flag("fp16"), draft.flag("pure_bf16")
    brain = draft.flag("bf16")
    if half and not brain:
        remark = "no loss scaling here; bfloat16 is safer on hardware that has it"
        draft.set("model.dtype", "float16", remark)
    elif brain or pure:
        remark = (
            "weights train in this dtype; with bf16 there they are kept in float32: "
            "say float32 for that, at twice the memory"
        )
        draft.set("model.dtype", "bfloat16", remark * (method == "full" and not pure))
    else:
        remark = "not said there, where it follows the checkpoint's own dtype"
        draft.set("model.dtype", "bfloat16", remark)


def quantization(draft: Draft, path: str) -> None:
    """How the frozen base is stored."""
    bits = draft.take("quantization_bit")
    maker = str(draft.take("quantization_method", "bitsandbytes"))
    double = draft.flag("double_quantization", True)
    kind = draft.take("quantization_type", "nf4")
    stored = next((name for name in STORED if name in Path(path).name.lower()), None)
    if stored:
        draft.lack(
            "model_name_or_path",
            f"a checkpoint stored by {stored.upper()} is not read; name the model that "
            "it was made from: model.quantization stores it in 4 bits while it is read",
        )
    if bits is None and not stored:
        return
    if bits == 8:
        remark = "a scale for each output; no columns are kept in 16 bits for outliers"
        draft.set("model.quantization", "int8", remark)
        return
    draft.set("model.quantization", "nf4" if double else "nf4_single")
    if bits not in (None, 4):
        draft.lack("quantization_bit", f"{bits} bits are not built; nf4 has 4")
    if maker not in ("bitsandbytes", "bnb"):
        draft.lack("quantization_method", f"{maker} is not built; nf4 stands for it")
    if kind != "nf4":
        draft.lack("quantization_type", f"{kind!r} is not built; nf4 stands for it")


def _lora(draft: Draft) -> None:
    start = names(draft.take("adapter_name_or_path", []))
    anew = draft.flag("create_new_adapter")
    if len(start) > 1 or (start and anew):
        draft.lack(
            "adapter_name_or_path",
            "adapters are not merged on the way; do it first: `python -m "
            "jaxpeft.combine`, or `jaxpeft export --to merged` and name its folder",
        )
    elif start:
        draft.set("adapter.init_from", start[0])
        for key in ("lora_rank", "lora_alpha", "lora_target", "use_rslora"):
            draft.skip(key, "the adapter to continue from says it")
        _lora_rest(draft)
        return
    rank = draft.whole("lora_rank", 8)
    draft.set("adapter.r", rank)
    draft.set("adapter.lora_alpha", draft.number("lora_alpha", 0) or 2 * rank)
    targets = names(draft.take("lora_target", "all"))
    draft.set("adapter.target_modules", "all-linear" if "all" in targets else targets)
    if draft.flag("use_rslora"):
        draft.set("adapter.use_rslora", True)
    _lora_rest(draft)


def _lora_rest(draft: Draft) -> None:
    """What may stand beside an adapter to continue from, too."""
    dropout = draft.number("lora_dropout", 0.0)
    if dropout:
        draft.set("adapter.lora_dropout", float(dropout))
    saved = names(draft.take("additional_target", []))
    if saved:
        draft.set("adapter.modules_to_save", saved)
    passes = draft.whole("pissa_iter", 16)
    if draft.flag("pissa_init"):
        init = "pissa" if passes < 0 else f"pissa_niter_{passes}"
        draft.set("adapter.init_lora_weights", init)
    ratio = draft.take("loraplus_lr_ratio")
    if ratio is not None:
        draft.set("optimizer.lora_plus_ratio", float(ratio))


def _data(draft: Draft, pretraining: bool) -> None:
    if not draft.given("dataset"):
        draft.refuse("dataset", "name a data set")
    _template(draft, pretraining)
    train = read_sources(draft, "dataset", pretraining)
    held_out = read_sources(draft, "eval_dataset", pretraining)
    weigh(draft, train)
    draft.set("data.train", train[0] if len(train) == 1 else train)
    if held_out:
        draft.set("data.eval", held_out[0] if len(held_out) == 1 else held_out)
    neat = draft.flag("neat_packing")
    if draft.flag("packing", pretraining) or neat:
        remark = "examples share a row and never see each other" * (not neat)
        draft.set("data.packing", True, remark)


def _template(draft: Draft, pretraining: bool) -> None:
    template = draft.take("template")
    if template is None or pretraining:
        return
    if "vl" in str(template).split("_") or "llava" in str(template):
        draft.refuse("template", TEXT_ONLY)
    draft.lack(
        "template",
        f"the tokenizer's own chat template is used, in training and in serving; that "
        f"of a chat model is what {template!r} imitates, a base model may have none",
    )


def _optimizer(draft: Draft) -> None:
    """The switches that stand for an optimizer beside `optim`."""
    galore, apollo = draft.flag("use_galore"), draft.flag("use_apollo")
    for kind, chosen in {"galore": galore, "apollo": apollo}.items():
        keys = {k: draft.take(f"{kind}_{k}") for k in _PROJECTION}
        if chosen:
            _instead(draft, kind, ADAM)
            _projection(draft, kind, keys)
    if draft.flag("use_adam_mini"):
        _instead(draft, "adam_mini", ADAM)
    if draft.flag("use_muon"):
        betas = {k: draft.settings.get(f"optimizer.{k}") for k in ADAM}
        _instead(draft, "muon", ())
        draft.set("optimizer.adjust_lr_fn", "match_rms_adamw")
        for key, value in betas.items():
            if value is not None:
                draft.set(f"optimizer.adam_{key}", value)


def _instead(draft: Draft, name: str, takes: tuple[str, ...]) -> None:
    for key in ADAM:
        draft.settings.pop(f"optimizer.{key}", None)
    draft.set("optimizer.name", name)
    if takes:
        adam(draft, takes)


# Their keys behind `galore_` and `apollo_`: (our key, GaLore's default, APOLLO's).
_PROJECTION: dict[str, tuple[str | None, Any, Any]] = {
    "target": ("target_modules", "all", "all"),
    "rank": ("rank", 16, 16),
    "update_interval": ("update_proj_gap", 200, 200),
    "scale": ("scale", 2.0, 32.0),
    "proj": ("proj", None, "random"),
    "proj_type": (None, "std", "std"),
    "scale_type": ("scale_type", None, "channel"),
    "layerwise": ("fused_backward", False, False),
    "scale_front": ("scale_front", None, False),
}


def _projection(draft: Draft, kind: str, given: Mapping[str, Any]) -> None:
    """The settings of GaLore or APOLLO."""
    for theirs, (ours, *defaults) in _PROJECTION.items():
        default = defaults[kind == "apollo"]
        value = default if given[theirs] is None else given[theirs]
        if theirs == "proj_type" and value != "std":
            draft.lack(f"{kind}_proj_type", "the smaller side is always projected")
        elif theirs == "target":
            targets = names(value)
            wanted = "all-linear" if "all" in targets else targets
            draft.set("optimizer.target_modules", wanted)
        elif theirs == "layerwise":
            if value:
                draft.set("training.fused_backward", True)
        elif ours and value is not None:
            number = float(value) if theirs == "scale" else value
            draft.set(f"optimizer.{ours}", number)
