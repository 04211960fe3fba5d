"""From LLaMA-Factory's YAML or JSON, by its documented keys (0.9.x).

https://github.com/hiyouga/LLaMA-Factory/tree/main/src/llamafactory/hparams
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxpeft.assembly.configuration import TABLES
from jaxpeft.convert_config import preferences, trainer
from jaxpeft.convert_config.datasets import read_sources
from jaxpeft.convert_config.draft import Draft, names
from jaxpeft.convert_config.llamafactory_rows import ROWS
from jaxpeft.convert_config.optimizers import ADAM, ONE_SIDE, OPTIMIZERS, Optimizer
from jaxpeft.convert_config.preferences import OF_SFT, ONLINE
from jaxpeft.data.layouts import TEXT_ONLY

# Stage: what its records are.
STAGES = {
    "sft": "answers",
    "pt": "text",
    "dpo": "pairs",
    "kto": "labelled",
    "rm": "pairs",
    "ppo": "answers",
}
METHODS, FREEZE = ("lora", "oft", "full"), "freeze"
# Kinds of checkpoints in few bits, which show in the name alone.
STORED = ("gptq", "awq", "aqlm")


def from_llamafactory(keys: Mapping[str, Any], devices: int | None = None) -> Draft:
    """What a file of LLaMA-Factory says, in our keys.

    Args:
        keys: the content of the file.
        devices: over how many the batch was spread; None: as many as `ray_num_workers`
            says, or one.

    Raises:
        InputError: all problems at once, for what cannot be trained here: stage `ppo`,
            methods other than LoRA, its kinds, OFT, full fine-tuning and freezing
            layers, images.
    """
    draft = Draft(keys)
    stage = _stage(draft)
    kind = STAGES[stage]
    method = _method(draft)
    _model(draft, method)
    if method in ADAPTERS:
        ADAPTERS[method](draft)
    _data(draft, kind)
    workers = draft.whole("ray_num_workers", 1)
    rows = 2 if kind == "pairs" else 1
    trainer.translate(draft, devices or workers, _switched(draft), rows)
    _projections(draft)
    preferences.objective(draft, stage)
    draft.apply(ROWS if kind in ("text", "answers") else {**ROWS, **OF_SFT})
    return draft


def _stage(draft: Draft) -> str:
    stage = draft.choice("stage", "sft", STAGES)
    if stage == "ppo":
        draft.refuse("stage", ONLINE)
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
        draft.refuse("finetuning_type", "can be lora, oft, full or freeze here")
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
    trainer.precision(draft, method)
    quantization(draft, str(path))
    full = TABLES["adapter"][method].gives_model
    if full and "model.quantization" in draft.settings:
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


def quantization(draft: Draft, path: str) -> None:
    """Sets how the frozen base is stored: `model.quantization`.

    Args:
        draft: gives their keys and takes ours.
        path: the model, whose name tells of a checkpoint stored in few bits.
    """
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
    if _continues(draft, OF_THE_ADAPTER):
        _lora_plus(draft)
        return
    rank = draft.whole("lora_rank", 8)
    draft.set("adapter.r", rank)
    draft.set("adapter.lora_alpha", draft.number("lora_alpha", 0) or 2 * rank)
    _targets(draft, "lora_target")
    if draft.flag("use_rslora"):
        draft.set("adapter.use_rslora", True)
    dropout = draft.number("lora_dropout", 0.0)
    if dropout:
        draft.set("adapter.lora_dropout", float(dropout))
    passes = draft.whole("pissa_iter", 16)
    if draft.flag("pissa_init"):
        init = "pissa" if passes < 0 else f"pissa_niter_{passes}"
        draft.set("adapter.init_lora_weights", init)
    _lora_plus(draft)


def _oft(draft: Draft) -> None:
    if _continues(draft, OF_THE_ROTATION):
        return
    blocks, size = draft.whole("oft_rank", 0), draft.whole("oft_block_size", 32)
    if bool(blocks) == bool(size):
        draft.refuse("oft_rank", "one of oft_rank and oft_block_size is 0, there too")
    if blocks:
        draft.set("adapter.r", blocks)
    else:
        draft.set("adapter.oft_block_size", size)
    _targets(draft, "oft_target")
    if draft.number("module_dropout", 0.0):
        draft.lack("module_dropout", "no rotation is dropped, in PEFT 0.18 neither")


def _continues(draft: Draft, of_the_adapter: tuple[str, ...]) -> bool:
    """Whether an adapter is continued, which says then what these keys say."""
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
        for key in of_the_adapter:
            draft.skip(key, "the adapter to continue from says it")
        return True
    return False


ADAPTERS = {"lora": _lora, "oft": _oft}


def _targets(draft: Draft, key: str) -> None:
    targets = names(draft.take(key, "all"))
    draft.set("adapter.target_modules", "all-linear" if "all" in targets else targets)
    saved = names(draft.take("additional_target", []))
    if saved:
        draft.set("adapter.modules_to_save", saved)


# What counts of a new adapter alone.
OF_THE_ADAPTER = (
    *("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "additional_target"),
    *("use_dora", "use_rslora", "pissa_init", "pissa_iter"),
)
OF_THE_ROTATION = (
    *("oft_rank", "oft_block_size", "oft_target", "module_dropout"),
    "additional_target",
)


def _lora_plus(draft: Draft) -> None:
    if draft.given("loraplus_lr_ratio"):
        ratio = draft.number("loraplus_lr_ratio", 1.0)
        draft.set("optimizer.lora_plus_ratio", float(ratio))


def _data(draft: Draft, kind: str) -> None:
    pretraining = kind == "text"
    if not draft.given("dataset"):
        draft.refuse("dataset", "name a data set")
    _template(draft, pretraining)
    draft.set(
        "data.max_length",
        draft.whole("cutoff_len", 2048),
        CUTS[kind],
    )
    train = read_sources(draft, "dataset", kind)
    held_out = read_sources(draft, "eval_dataset", kind)
    draft.set("data.train", train[0] if len(train) == 1 else train)
    if held_out:
        draft.set("data.eval", held_out[0] if len(held_out) == 1 else held_out)
    _held_out(draft, bool(held_out))
    neat = draft.flag("neat_packing")
    if kind in ("pairs", "labelled"):
        draft.skip("packing", "preferences are never packed, there either")
    elif draft.flag("packing", pretraining) or neat:
        remark = "examples share a row and never see each other" * (not neat)
        draft.set("data.packing", True, remark)
    if draft.flag("train_on_prompt"):
        draft.set("data.train_on", "all")
    if draft.flag("disable_shuffling"):
        draft.set("data.shuffle", False)


_SHARES = "there question and answer are shortened by their shares"
_OF_PREFERENCES = f"what is longer loses the beginning of its prompt here; {_SHARES}"
# What happens to records that are too long, by what they are.
CUTS = {
    "text": "",
    "answers": f"what is longer loses its end here; {_SHARES}",
    "pairs": _OF_PREFERENCES,
    "labelled": _OF_PREFERENCES,
}


def _held_out(draft: Draft, evaluated: bool) -> None:
    """The part of the training data that is set aside."""
    size = draft.number("val_size", 0.0)
    if evaluated and size:
        draft.lack("val_size", "cannot stand beside eval_dataset, there either")
    elif 0 < size < 1:
        remark = "of each source, other records than there"
        draft.set("data.eval_split", size, remark)
    elif size:
        draft.lack("val_size", "is a number of records: give data.eval_split, a share")


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


# What chooses an optimizer beside `optim`. Weights decay with all of them there.
SWITCHES = {
    "use_galore": Optimizer("galore", adam=ADAM),
    "use_apollo": Optimizer("apollo", adam=ADAM),
    "use_adam_mini": Optimizer("adam_mini", adam=ADAM),
    "use_muon": Optimizer(
        "muon",
        adam=tuple(f"adam_{key}" for key in ADAM),
        own={"adjust_lr_fn": "match_rms_adamw"},
    ),
}


def _switched(draft: Draft) -> Optimizer | None:
    """The optimizer that one of the switches chooses; None: `optim` does."""
    chosen = [key for key in SWITCHES if draft.flag(key)]
    if len(chosen) > 1:
        draft.refuse(chosen[1], f"{chosen[0]} chooses the optimizer already; keep one")
    if not chosen:
        return None
    inner = str(draft.take("optim", ""))
    draft.skip("optim", f"{chosen[0]} chooses the optimizer")
    remark = ""
    if chosen[0] == "use_galore" and "8bit" in inner:
        remark = OPTIMIZERS["galore_adamw_8bit"].remark
    elif chosen[0] == "use_galore" and inner == "adafactor":
        remark = OPTIMIZERS["galore_adafactor"].remark
    return replace(SWITCHES[chosen[0]], remark=remark)


# Their keys behind `galore_` and `apollo_`.
_PROJECTION = ("target", "rank", "update_interval", "scale", "layerwise", "proj_type")
PROJECTIONS = {
    "galore": _PROJECTION,
    "apollo": (*_PROJECTION, "proj", "scale_type", "scale_front"),
}
_SCALES = {"galore": 2.0, "apollo": 32.0}


def _projections(draft: Draft) -> None:
    """The settings of GaLore and APOLLO, where one of them is chosen."""
    for kind, keys in PROJECTIONS.items():
        if draft.flag(f"use_{kind}"):
            _projection(draft, kind)
        else:
            for key in keys:
                draft.skip(f"{kind}_{key}", f"of use_{kind}")
    if draft.flag("use_apollo"):
        draft.set("optimizer.proj", draft.take("apollo_proj", "random"))
        draft.set("optimizer.scale_type", draft.take("apollo_scale_type", "channel"))
        draft.set("optimizer.scale_front", draft.flag("apollo_scale_front"))


def _projection(draft: Draft, kind: str) -> None:
    """What GaLore and APOLLO have in common."""
    targets = names(draft.take(f"{kind}_target", "all"))
    draft.set("optimizer.target_modules", "all-linear" if "all" in targets else targets)
    draft.set("optimizer.rank", draft.whole(f"{kind}_rank", 16))
    gap = draft.whole(f"{kind}_update_interval", 200)
    draft.set("optimizer.update_proj_gap", gap)
    scale = draft.number(f"{kind}_scale", _SCALES[kind])
    draft.set("optimizer.scale", float(scale))
    if draft.flag(f"{kind}_layerwise"):
        draft.set("training.fused_backward", True)
    if draft.take(f"{kind}_proj_type", "std") != "std":
        draft.lack(f"{kind}_proj_type", ONE_SIDE)
