"""From LLaMA-Factory's YAML or JSON, by its documented keys (0.9.x).

https://github.com/hiyouga/LLaMA-Factory/tree/main/src/llamafactory/hparams
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpeft.convert import trainer
from jaxpeft.convert.datasets import PREFERENCES, TEXT_ONLY, read_sources, weigh
from jaxpeft.convert.draft import Draft, Idle, Refused, Row, To, Without, names
from jaxpeft.convert.optimizers import ADAM, adam

_GENERATE = "an option of `python -m jaxpeft.generate`"
_EXPORT = "an option of `python -m jaxpeft.export`"
_SERVING = "serving is left to vLLM and others, which read the adapter"
_SPEED = "how the step is compiled decides this here"
_CACHE = "nothing tokenized is kept: it is done again in seconds"
_RAY = "start the processes with scripts/slurm.sbatch or scripts/launch_local.sh"
_KT = "nothing runs on the CPU beside a GPU here; `plan` says what fits"
_VOCABULARY = "tokens cannot be added; add them to the model and its tokenizer first"
_LOSS = "the loss is plain cross entropy"
_BLOCKS = "choose optimizer.name adalomo or adamw_8bit, which need as little memory"
_FP8 = "nothing is computed in 8-bit floats; model.quantization: int8 stores so"
_BENCHMARK = (
    "benchmarks are not run here; serve the adapter and use lm-evaluation-harness"
)
_VISION = Refused(TEXT_ONLY, off=(None,))
_SWANLAB = "curves go to metrics.jsonl, loss.png and training.report_to"
_PREFERENCE = Idle("of preference training, which stage sft is not")
_LORA = Idle("of finetuning_type lora")

ROWS: dict[str, Row] = {
    **trainer.ROWS,
    # model
    "trust_remote_code": Idle("a model's code is never run; its family is built in"),
    "cache_dir": Idle("HF_HOME says this"),
    "hf_hub_token": Idle("HF_TOKEN says this"),
    "ms_hub_token": Idle("models are local folders or of the Hugging Face hub"),
    "om_hub_token": Idle("models are local folders or of the Hugging Face hub"),
    "model_revision": Without(
        "the hub's newest version is taken; fetch another with `hf download "
        "--revision` and name its folder",
        off=(None, "main"),
    ),
    "adapter_folder": Without("name the folder in adapter.init_from"),
    "use_fast_tokenizer": Idle("the tokenizer is always the fast one"),
    "low_cpu_mem_usage": Idle("each tensor is read into its place on its device"),
    "offload_folder": Idle("each tensor is read into its place on its device"),
    "flash_attn": Idle("attention never stores its scores; on NVIDIA it is cuDNN's"),
    "use_unsloth": Idle(_SPEED),
    "use_unsloth_gc": Idle(_SPEED),
    "enable_liger_kernel": Idle(_SPEED),
    "use_v1_kernels": Idle(_SPEED),
    "use_reentrant_gc": Idle(_SPEED),
    "use_kv_cache": Idle("generation always keeps a cache"),
    "block_diag_attn": Idle("packed examples never see each other"),
    "upcast_layernorm": Idle("norms are always computed in float32"),
    "upcast_lmhead_output": Idle("the loss is always computed in float32"),
    "print_param_status": Idle("the log's first lines say what trains"),
    "quantization_device_map": Idle("weights are quantized as they are read"),
    "rope_scaling": Without("config.json of the model says this; change it there"),
    "shift_attn": Without("attention is always whole; shorten data.max_length"),
    "mixture_of_depths": Without("no such layers are built"),
    "moe_aux_loss_coef": Without("the router is frozen with adapters: no such loss"),
    "train_from_scratch": Without("training starts from a model's weights"),
    "resize_vocab": Without(_VOCABULARY),
    "add_tokens": Without(_VOCABULARY),
    "add_special_tokens": Without(_VOCABULARY),
    "new_special_tokens_config": Without(_VOCABULARY),
    "init_special_tokens": Idle("of added tokens"),
    "split_special_tokens": Without("special tokens in the data are read as such"),
    "fp8": Without(_FP8),
    "fp8_backend": Idle(_FP8),
    "fp8_enable_fsdp_float8_all_gather": Without(_FP8),
    "infer_backend": Idle(_SERVING),
    "infer_dtype": Idle(_SERVING),
    "image_max_pixels": _VISION,
    "image_min_pixels": _VISION,
    "image_resolution": _VISION,
    "image_do_pan_and_scan": _VISION,
    "crop_to_patches": _VISION,
    "video_max_pixels": _VISION,
    "video_min_pixels": _VISION,
    "video_resolution": _VISION,
    "video_fps": _VISION,
    "video_maxlen": _VISION,
    "use_audio_in_video": _VISION,
    "audio_sampling_rate": _VISION,
    "media_dir": _VISION,
    "freeze_vision_tower": Idle("models here have no such part"),
    "freeze_multi_modal_projector": Idle("models here have no such part"),
    "freeze_language_model": _VISION,
    # method
    "lora_rank": _LORA,
    "lora_alpha": _LORA,
    "lora_dropout": _LORA,
    "lora_target": _LORA,
    "additional_target": _LORA,
    "use_rslora": _LORA,
    "pissa_init": _LORA,
    "pissa_iter": _LORA,
    "loraplus_lr_ratio": _LORA,
    "create_new_adapter": _LORA,
    "adapter_name_or_path": Without("merge it into the model first: `jaxpeft export`"),
    "pissa_convert": Idle("a PiSSA adapter is always written as a plain LoRA"),
    "freeze_trainable_layers": Idle("of finetuning_type freeze"),
    "freeze_trainable_modules": Idle("of finetuning_type freeze"),
    "freeze_extra_modules": Idle("of finetuning_type freeze"),
    "module_dropout": Idle("of finetuning_type oft"),
    "oft_rank": Idle("of finetuning_type oft"),
    "oft_block_size": Idle("of finetuning_type oft"),
    "oft_target": Idle("of finetuning_type oft"),
    "use_llama_pro": Refused("expanded blocks cannot be trained alone; use lora"),
    "use_mca": Idle(_SPEED),
    "use_dft_loss": Without(_LOSS),
    "use_asft_loss": Without(_LOSS),
    "asft_alpha": Idle(_LOSS),
    "use_eaft_loss": Without(_LOSS),
    "eaft_alpha": Idle(_LOSS),
    "use_badam": Without(f"blocks do not take turns here; {_BLOCKS}"),
    "badam_mode": Idle("of BAdam"),
    "badam_start_block": Idle("of BAdam"),
    "badam_switch_mode": Idle("of BAdam"),
    "badam_switch_interval": Idle("of BAdam"),
    "badam_update_ratio": Idle("of BAdam"),
    "badam_mask_mode": Idle("of BAdam"),
    "badam_verbose": Idle("of BAdam"),
    "loraplus_lr_embedding": Idle(
        "embeddings follow the others; another rate is a row of optimizer.groups"
    ),
    "compute_accuracy": Idle("`python -m jaxpeft.evaluate --run DIR` always says it"),
    "plot_loss": Idle("loss.png is always drawn"),
    "include_effective_tokens_per_second": Idle("the log always says it"),
    "pref_beta": _PREFERENCE,
    "pref_ftx": _PREFERENCE,
    "pref_loss": _PREFERENCE,
    "pref_bco_weight": _PREFERENCE,
    "dpo_label_smoothing": _PREFERENCE,
    "kto_chosen_weight": _PREFERENCE,
    "kto_rejected_weight": _PREFERENCE,
    "simpo_gamma": _PREFERENCE,
    "ld_alpha": _PREFERENCE,
    "ref_model": _PREFERENCE,
    "ref_model_adapters": _PREFERENCE,
    "ref_model_quantization_bit": _PREFERENCE,
    "reward_model": _PREFERENCE,
    "reward_model_adapters": _PREFERENCE,
    "reward_model_quantization_bit": _PREFERENCE,
    "reward_model_type": _PREFERENCE,
    "ppo_buffer_size": _PREFERENCE,
    "ppo_epochs": _PREFERENCE,
    "ppo_score_norm": _PREFERENCE,
    "ppo_target": _PREFERENCE,
    "ppo_whiten_rewards": _PREFERENCE,
    "use_swanlab": Without(_SWANLAB),
    "swanlab_project": Idle(_SWANLAB),
    "swanlab_workspace": Idle(_SWANLAB),
    "swanlab_run_name": Idle(_SWANLAB),
    "swanlab_mode": Idle(_SWANLAB),
    "swanlab_api_key": Idle(_SWANLAB),
    "swanlab_logdir": Idle(_SWANLAB),
    "swanlab_lark_webhook_url": Idle(_SWANLAB),
    "swanlab_lark_secret": Idle(_SWANLAB),
    # data
    "cutoff_len": To("data.max_length"),
    "disable_shuffling": To("data.shuffle", lambda disabled: not disabled),
    "train_on_prompt": To("data.train_on", lambda all_: "all" if all_ else "assistant"),
    "mask_history": Without(
        "every answer of a conversation is learned; in format messages give those that "
        "are not `weight: 0`"
    ),
    "streaming": Without("data are read whole, which keeps every step repeatable"),
    "buffer_size": Idle("data are read whole"),
    "data_shared_file_system": Idle("every process reads the same files"),
    "overwrite_cache": Idle(_CACHE),
    "preprocessing_batch_size": Idle(_CACHE),
    "preprocessing_num_workers": Idle(_CACHE),
    "tokenized_path": Idle(_CACHE),
    "ignore_pad_token_for_loss": Idle("masks go by position: padding never counts"),
    "eval_num_beams": Idle(_GENERATE),
    "eval_on_each_dataset": Without(
        "the evaluation loss is that of all data; ask for one with `python -m "
        "jaxpeft.evaluate --run DIR 'data.eval={path: FILE}'`"
    ),
    "tool_format": Without("the tokenizer's chat template writes tools"),
    "default_system": Without("give the examples a system column"),
    "enable_thinking": Without("the tokenizer's chat template says this", off=(None,)),
    "val_size": Without(
        "no part of the training data is set aside; write the last records to a file "
        "of their own and name it in data.eval, then give training.eval_steps"
    ),
    # other commands and ways to run
    "task": Refused(_BENCHMARK, off=(None,)),
    "task_dir": Idle(_BENCHMARK),
    "lang": Idle(_BENCHMARK),
    "n_shot": Idle(_BENCHMARK),
    "save_dir": Idle(_BENCHMARK),
    "batch_size": Idle(_BENCHMARK),
    "max_new_tokens": Idle(_GENERATE),
    "max_length": Idle(_GENERATE),
    "do_sample": Idle(_GENERATE),
    "temperature": Idle(_GENERATE),
    "top_p": Idle(_GENERATE),
    "top_k": Idle(_GENERATE),
    "num_beams": Idle(_GENERATE),
    "repetition_penalty": Idle(_GENERATE),
    "length_penalty": Idle(_GENERATE),
    "skip_special_tokens": Idle(_GENERATE),
    "export_dir": Idle(_EXPORT),
    "export_size": Idle(_EXPORT),
    "export_device": Idle(_EXPORT),
    "export_quantization_bit": Idle(_EXPORT),
    "export_quantization_dataset": Idle(_EXPORT),
    "export_quantization_nsamples": Idle(_EXPORT),
    "export_quantization_maxlen": Idle(_EXPORT),
    "export_legacy_format": Idle(_EXPORT),
    "export_hub_model_id": Idle(_EXPORT),
    "use_ray": Without(_RAY),
    "ray_run_name": Without(_RAY),
    "ray_storage_path": Idle(_RAY),
    "ray_storage_filesystem": Idle(_RAY),
    "resources_per_worker": Idle(_RAY),
    "placement_strategy": Idle(_RAY),
    "ray_init_kwargs": Idle(_RAY),
    "master_addr": Idle(_RAY),
    "master_port": Idle(_RAY),
    "use_kt": Without(_KT),
    "kt_optimize_rule": Idle(_KT),
    "cpu_infer": Idle(_KT),
    "chunk_size": Idle(_KT),
    "mode": Idle(_KT),
    "kt_maxlen": Idle(_KT),
    "kt_use_cuda_graph": Idle(_KT),
    "kt_mode": Idle(_KT),
    "kt_force_think": Idle(_KT),
    "vllm_maxlen": Idle(_SERVING),
    "vllm_gpu_util": Idle(_SERVING),
    "vllm_enforce_eager": Idle(_SERVING),
    "vllm_max_lora_rank": Idle(_SERVING),
    "vllm_config": Idle(_SERVING),
    "sglang_maxlen": Idle(_SERVING),
    "sglang_mem_fraction": Idle(_SERVING),
    "sglang_tp_size": Idle(_SERVING),
    "sglang_config": Idle(_SERVING),
    "sglang_lora_backend": Idle(_SERVING),
}

# Stage: whether it can be trained here, or why not.
STAGES: dict[str, str | None] = {
    "sft": None,
    "pt": None,
    "rm": PREFERENCES,
    "dpo": PREFERENCES,
    "kto": PREFERENCES,
    "ppo": PREFERENCES,
}
METHODS = ("lora", "full")
# Kinds of checkpoints in few bits, which show in the name alone.
STORED = ("gptq", "awq", "aqlm")


def from_llamafactory(keys: Mapping[str, Any], devices: int | None = None) -> Draft:
    """What a file of LLaMA-Factory says, in our keys.

    keys: its content. devices: over how many the batch was spread, None: as many as
    `ray_num_workers` says, or one. Raises InputError, all problems at once, for what
    cannot be trained here: stages other than `sft` and `pt`, methods other than LoRA,
    its kinds and full fine-tuning, images.
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
    if kind not in METHODS:
        draft.refuse(
            "finetuning_type",
            "can be lora or full here; whole layers cannot be trained alone: use lora "
            "with adapter.layers_to_transform, or full with optimizer.name adalomo",
        )
        kind = "lora"
    dora = draft.flag("use_dora")
    draft.set("adapter.method", "dora" if dora and kind == "lora" else kind)
    return kind


def _model(draft: Draft, method: str) -> None:
    path = draft.take("model_name_or_path")
    if path is None:
        draft.refuse("model_name_or_path", "name the model")
        return
    draft.set("model.path", path)
    precision(draft, method)
    quantization(draft, str(path))
    if method == "full" and "model.quantization" in draft.settings:
        key = "quantization_bit"
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
