"""What becomes of LLaMA-Factory's keys that stand for themselves (0.9.x).

https://github.com/hiyouga/LLaMA-Factory/tree/main/src/llamafactory/hparams
"""

from jaxpeft.convert_config import trainer
from jaxpeft.convert_config.draft import Idle, Refused, Row, To, Without
from jaxpeft.data.layouts import TEXT_ONLY

_GENERATE = "an option of `python -m jaxpeft.generate`"
_EXPORT = "an option of `python -m jaxpeft.export`"
_SERVING = "serving is left to vLLM and others, which read the adapter"
_SPEED = "how the step is compiled decides this here"
_CACHE = "what is tokenized is kept by what it is made of; see data.num_workers"
_RAY = "start the processes with scripts/slurm.sbatch or scripts/launch_local.sh"
_KT = "nothing runs on the CPU beside a GPU here; `plan` says what fits"
_VOCABULARY = "add them to the tokenizer first, then jaxpeft export --tokenizer"
_LOSS = "the loss is cross entropy, or that of dft (objective.loss_type)"
_BLOCKS = "choose optimizer.name adalomo or adamw_8bit, which need as little memory"
_FP8 = "nothing is computed in 8-bit floats; model.quantization: int8 stores so"
_BENCHMARK = (
    "benchmarks run after training: jaxpeft evaluate --run DIR --tasks NAME "
    "(docs/evaluation.md)"
)
_VISION = Refused(TEXT_ONLY, off=(None,))
_SWANLAB = "curves go to metrics.jsonl, loss.png and training.report_to"
_PREFERENCE = Idle("of another stage, or of a loss that is not chosen")
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
    "flash_attn": Idle(
        "attention never stores its scores, whichever kernel computes it"
    ),
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
    "use_dft_loss": To("objective.loss_type", lambda _: "dft", off=(None, False)),
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
    "mask_history": Without(
        "every answer of a conversation is learned; in format messages give those that "
        "are not `weight: 0`"
    ),
    "streaming": Without(
        "set data.streaming to true yourself; it needs training.max_steps, and refuses "
        "packing and eval_split"
    ),
    "buffer_size": Idle("see data.shuffle_buffer"),
    "data_shared_file_system": Idle("every process reads the same files"),
    "overwrite_cache": Idle(_CACHE),
    "preprocessing_batch_size": Idle(_CACHE),
    "preprocessing_num_workers": Idle(_CACHE),
    "tokenized_path": Without(
        "tokens kept there are not read; the data sets that they came from are"
    ),
    "ignore_pad_token_for_loss": Idle("masks go by position: padding never counts"),
    "eval_num_beams": Idle(_GENERATE),
    "eval_on_each_dataset": Without(
        "the evaluation loss is that of all data; ask for one with `python -m "
        "jaxpeft.evaluate --run DIR 'data.eval={path: FILE}'`"
    ),
    "tool_format": Without("the tokenizer's chat template writes tools"),
    "default_system": Without("give the examples a system column"),
    "enable_thinking": Without("the tokenizer's chat template says this", off=(None,)),
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
