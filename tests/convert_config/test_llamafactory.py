"""LLaMA-Factory's examples, written anew from its documented keys, become ours."""

import pytest

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
QWEN = "Qwen/Qwen3-4B-Instruct-2507"

# What its examples of supervised LoRA have in common.
COMMON = {
    "model_name_or_path": LLAMA,
    "trust_remote_code": True,
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_target": "all",
    "dataset": "identity,alpaca_en_demo",
    "template": "llama3",
    "cutoff_len": 2048,
    "max_samples": 1000,
    "preprocessing_num_workers": 16,
    "dataloader_num_workers": 4,
    "output_dir": "saves/lora/sft",
    "logging_steps": 10,
    "save_steps": 500,
    "plot_loss": True,
    "overwrite_output_dir": True,
    "save_only_model": False,
    "report_to": "none",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1e-4,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
    "ddp_timeout": 180000000,
    "resume_from_checkpoint": None,
}
EVALUATED = {
    "val_size": 0.1,
    "per_device_eval_batch_size": 1,
    "eval_strategy": "steps",
    "eval_steps": 500,
}
RAY = {
    "ray_run_name": "llama3_8b_sft_lora",
    "ray_storage_path": "./saves",
    "ray_num_workers": 4,
    "placement_strategy": "PACK",
    "resources_per_worker": {"GPU": 1},
}
KT = {
    "use_kt": True,
    "kt_optimize_rule": "rules/DeepSeek-V3.yaml",
    "cpu_infer": 32,
    "chunk_size": 8192,
}
SPLIT = {"mesh.data": 1, "mesh.fsdp": -1}

# Example: what it has besides, what becomes of it, and what has no equivalent.
EXAMPLES = {
    "train_lora/sft": ({}, {"model.quantization": "none"}, {"template"}),
    "train_lora/sft, nothink": (
        {"model_name_or_path": QWEN, "template": "qwen3_nothink"},
        {"model.path": QWEN},
        {"template"},
    ),
    "train_lora/sft, evaluated": (
        EVALUATED,
        {"training.eval_steps": 500, "data.eval_split": 0.1},
        {"template"},
    ),
    "train_lora/sft, evaluated on a set": (
        {**EVALUATED, "val_size": 0.0, "eval_dataset": "identity"},
        {"training.eval_steps": 500, "data.eval_batch_size": 1},
        {"template"},
    ),
    "train_lora/pretrain": (
        {"stage": "pt", "dataset": "c4_demo", "template": None},
        {"data.packing": True},
        set(),
    ),
    "train_lora/sft_ds0": (
        {"deepspeed": "examples/deepspeed/ds_z0_config.json"},
        {"mesh.data": -1, "mesh.fsdp": 1},
        {"template"},
    ),
    "train_lora/sft_ds3": (
        {"deepspeed": "examples/deepspeed/ds_z3_config.json"},
        SPLIT,
        {"template"},
    ),
    "train_lora/sft_ds3, offloaded": (
        {"deepspeed": "examples/deepspeed/ds_z3_offload_config.json"},
        SPLIT,
        {"template", "deepspeed: offload"},
    ),
    "train_lora/sft_ray": (
        {**RAY, "dataset": "identity"},
        {"training.batch_size": 32},
        {"template", "ray_run_name"},
    ),
    "train_lora/preprocess": (
        {"tokenized_path": "saves/dataset", "overwrite_cache": True},
        {},
        {"template", "tokenized_path"},
    ),
    "train_lora/sft_kt": (KT, {}, {"template", "use_kt"}),
    "train_qlora/otfq": (
        {"quantization_bit": 4, "quantization_method": "bitsandbytes"},
        {"model.quantization": "nf4"},
        {"template"},
    ),
    "train_qlora/bnb_npu": (
        {
            "quantization_bit": 4,
            "quantization_method": "bnb",
            "double_quantization": False,
        },
        {"model.quantization": "nf4_single"},
        {"template"},
    ),
    "train_qlora/8 bits": (
        {"quantization_bit": 8},
        {"model.quantization": "int8"},
        {"template"},
    ),
    "train_qlora/hqq": (
        {"quantization_bit": 3, "quantization_method": "hqq"},
        {"model.quantization": "nf4"},
        {"template", "quantization_bit", "quantization_method"},
    ),
    "train_qlora/gptq": (
        {"model_name_or_path": "TechxGenus/Meta-Llama-3-8B-Instruct-GPTQ"},
        {"model.quantization": "nf4"},
        {"template", "model_name_or_path"},
    ),
    "train_qlora/awq": (
        {"model_name_or_path": "TechxGenus/Meta-Llama-3-8B-Instruct-AWQ"},
        {"model.quantization": "nf4"},
        {"template", "model_name_or_path"},
    ),
    "train_qlora/aqlm": (
        {"model_name_or_path": "ISTA-DASLab/Llama-3-8B-Instruct-AQLM-2Bit-1x16"},
        {"model.quantization": "nf4"},
        {"template", "model_name_or_path"},
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_its_examples_convert_and_validate(name, convert, value, data_folder):
    changes, ours, missing = EXAMPLES[name]
    keys = COMMON | {"dataset_dir": str(data_folder)} | changes
    done = convert(keys)
    assert (done.code, done.err) == (0, "")
    common = {
        "output_dir": "saves/lora/sft",
        "model.dtype": "bfloat16",
        "model.remat": "full",
        "adapter.method": "lora",
        "adapter.r": 8,
        "adapter.lora_alpha": 16,  # twice the rank where it is not said
        "adapter.target_modules": "all-linear",
        "data.max_length": 2048,
        "data.train_on": "assistant",
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 1e-4,
        "optimizer.weight_decay": 0.0,  # the Trainer's default, not ours
        "optimizer.max_grad_norm": 1.0,
        "schedule.name": "cosine",
        "schedule.warmup_ratio": 0.1,
        "training.num_epochs": 3.0,
        "training.batch_size": 8,
        "training.gradient_accumulation_steps": 8,
        "training.logging_steps": 10,
        "training.save_steps": 500,
    }
    for key, expected in (common | ours).items():
        assert value(done.cfg, key) == expected, key
    assert listed(done.out) == missing
    for key in missing:
        assert f"# - {key}: " in done.text


def listed(out: str) -> set[str]:
    """The keys that the command says have no equivalent."""
    _, _, tail = out.partition("without equivalent:\n")
    lines = [line for line in tail.splitlines() if line.startswith("  ")]
    keys = [line.strip().rpartition(": ") for line in lines]
    return {first_key(key) for key, _, _ in keys}


def first_key(text: str) -> str:
    """`deepspeed: offload` of `deepspeed: offload: nothing is kept ...`."""
    head, _, rest = text.partition(": ")
    return (
        f"{head}: {rest.split(':')[0]}"
        if rest and " " not in rest.split(":")[0]
        else head
    )


# What cannot be trained here, and the word that the message has to say.
REFUSED = {
    "ppo": ({"stage": "ppo", "reward_model": "saves/reward"}, "stage", "dpo"),
    "vision": (
        {"image_max_pixels": 262144, "video_max_pixels": 16384},
        "image_max_pixels",
        "text",
    ),
    "vision by template": ({"template": "qwen3_vl_nothink"}, "template", "text"),
    "pictures": ({"dataset": "pictures"}, "dataset: pictures: columns", "text"),
    "preferences": ({"dataset": "dpo_en_demo"}, "dataset", "chosen"),
    "predict": (
        {"do_train": False, "do_predict": True, "predict_with_generate": True},
        "do_predict",
        "jaxpeft.generate",
    ),
    "benchmark": ({"task": "mmlu_test", "n_shot": 5}, "task", "jaxpeft evaluate"),
    "no layers": (
        {"finetuning_type": "freeze", "freeze_trainable_layers": 0},
        "freeze_trainable_layers",
        "how many",
    ),
    "another method": ({"finetuning_type": "lokr"}, "finetuning_type", "lora, oft"),
    "blocks said twice": (
        {"finetuning_type": "oft", "oft_rank": 4},
        "oft_rank",
        "oft_block_size is 0",
    ),
    "full in few bits": (
        {"finetuning_type": "full", "quantization_bit": 4},
        "quantization_bit",
        "lora",
    ),
    "full over few bits": (
        {"finetuning_type": "full", "model_name_or_path": "org/model-AWQ"},
        "model_name_or_path",
        "lora",
    ),
    "a misspelt set": ({"dataset": "identitty"}, "dataset", "did you mean 'identity'"),
    "a misspelt optimizer": ({"optim": "adamw_trch"}, "optim", "'adamw_torch'"),
    "a list for a word": ({"stage": ["sft"]}, "stage", "did you mean 'sft'"),
    "a rate in words": ({"learning_rate": "low"}, "learning_rate", "number"),
    "LoRA+ in words": ({"loraplus_lr_ratio": "big"}, "loraplus_lr_ratio", "number"),
    "LoRA+ of a list": ({"loraplus_lr_ratio": [1]}, "loraplus_lr_ratio", "number"),
    "a scale in words": (
        {"use_galore": True, "galore_scale": "x"},
        "galore_scale",
        "number",
    ),
    "two optimizers": ({"use_galore": True, "use_muon": True}, "use_muon", "keep one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_is_refused(name, convert, data_folder):
    changes, key, remedy = REFUSED[name]
    done = convert(COMMON | {"dataset_dir": str(data_folder)} | changes)
    assert done.code == 2
    lines = [line for line in done.err.splitlines() if f"error: {key}: found" in line]
    assert lines
    assert remedy in lines[0]
    assert done.cfg is None


def test_all_that_is_refused_is_told_at_once(convert, data_folder):
    keys = COMMON | {"dataset_dir": str(data_folder), "stage": "ppo"}
    done = convert(keys | {"finetuning_type": "lokr", "image_max_pixels": 9})
    assert len(done.err.splitlines()) == 3


# One key or a few: what becomes of it.
KEYS = [
    (
        {"finetuning_type": "oft", "oft_target": "q_proj,v_proj"},
        {
            "adapter.method": "oft",
            "adapter.oft_block_size": 32,
            "adapter.target_modules": ["q_proj", "v_proj"],
        },
    ),
    (
        {"finetuning_type": "oft", "oft_rank": 8, "oft_block_size": 0},
        {"adapter.r": 8, "adapter.target_modules": "all-linear"},
    ),
    (
        {"label_smoothing_factor": 0.1, "neftune_noise_alpha": 5},
        {"objective.label_smoothing": 0.1, "objective.neftune_noise_alpha": 5},
    ),
    ({"use_dft_loss": True}, {"objective.loss_type": "dft"}),
    ({"finetuning_type": "full", "pure_bf16": True}, {"adapter.method": "full"}),
    (
        {"finetuning_type": "freeze"},
        {"adapter.method": "full", "adapter.trainable_layers": 2},
    ),
    (
        {
            "finetuning_type": "freeze",
            "freeze_trainable_layers": -1,
            "freeze_trainable_modules": "self_attn,mlp.up_proj",
            "freeze_extra_modules": "embed_tokens,norm",
        },
        {
            "adapter.trainable_layers": -1,
            "adapter.target_modules": ["self_attn", "mlp.up_proj"],
            "adapter.modules_to_save": ("embed_tokens", "norm"),
        },
    ),
    ({"use_dora": True}, {"adapter.method": "dora"}),
    ({"use_rslora": True}, {"adapter.use_rslora": True}),
    ({"pissa_init": True}, {"adapter.init_lora_weights": "pissa_niter_16"}),
    (
        {"pissa_init": True, "pissa_iter": -1, "pissa_convert": True},
        {"adapter.init_lora_weights": "pissa"},
    ),
    (
        {"lora_target": "q_proj, v_proj"},
        {"adapter.target_modules": ["q_proj", "v_proj"]},
    ),
    ({"lora_alpha": 32, "lora_dropout": 0.1}, {"adapter.lora_alpha": 32}),
    (
        {"additional_target": "embed_tokens,lm_head"},
        {"adapter.modules_to_save": ("embed_tokens", "lm_head")},
    ),
    ({"loraplus_lr_ratio": 16.0}, {"optimizer.lora_plus_ratio": 16.0}),
    ({"adapter_name_or_path": "saves/a"}, {"adapter.init_from": "saves/a"}),
    ({"disable_gradient_checkpointing": True}, {"model.remat": "none"}),
    ({"bf16": False, "fp16": True}, {"model.dtype": "float16"}),
    ({"train_on_prompt": True}, {"data.train_on": "all"}),
    # YAML 1.1, which theirs is read by, knows more words for these than 1.2.
    ({"train_on_prompt": "Yes"}, {"data.train_on": "all"}),
    ({"train_on_prompt": "no"}, {"data.train_on": "assistant"}),
    ({"disable_shuffling": "off"}, {"data.shuffle": True}),
    ({"disable_shuffling": "ON", "streaming": "no"}, {"data.shuffle": False}),
    ({"packing": True}, {"data.packing": True}),
    ({"neat_packing": True}, {"data.packing": True}),
    ({"disable_shuffling": True}, {"data.shuffle": False}),
    ({"max_steps": 40}, {"training.max_steps": 40, "training.num_epochs": None}),
    (
        {"max_steps": 40, "save_steps": 0.25, "logging_steps": 0.05},
        {"training.save_steps": 10, "training.logging_steps": 2},
    ),
    ({"max_grad_norm": 0}, {"optimizer.max_grad_norm": None}),
    ({"save_total_limit": 2, "seed": 7}, {"training.save_total_limit": 2, "seed": 7}),
    (
        {"use_galore": True, "finetuning_type": "full", "galore_rank": 64},
        {
            "optimizer.name": "galore",
            "optimizer.rank": 64,
            "optimizer.scale": 2.0,
            "optimizer.eps": 1e-8,
            "optimizer.target_modules": "all-linear",
        },
    ),
    (
        {
            "use_apollo": True,
            "finetuning_type": "full",
            "apollo_layerwise": True,
            "apollo_target": "q_proj,k_proj",
            "gradient_accumulation_steps": 1,
        },
        {
            "optimizer.name": "apollo",
            "optimizer.rank": 16,
            "optimizer.scale": 32.0,
            "optimizer.target_modules": ["q_proj", "k_proj"],
            "training.fused_backward": True,
            "training.batch_size": 1,
        },
    ),
    (
        {"finetuning_type": "full", "optim": "adalomo"},
        {"optimizer.name": "adalomo", "training.fused_backward": False},
    ),
    (
        {
            "finetuning_type": "full",
            "optim": "adalomo",
            "gradient_accumulation_steps": 1,
        },
        {"optimizer.name": "adalomo", "training.fused_backward": None},
    ),
    ({"output_dir": None}, {"output_dir": "runs/converted"}),
    ({"use_adam_mini": True}, {"optimizer.name": "adam_mini"}),
    (
        {"use_adam_mini": True, "optim": "adamw_torch_4bit", "adam_beta2": 0.9},
        {"optimizer.name": "adam_mini", "optimizer.b2": 0.9},
    ),
    # Muon's Adam takes the Trainer's settings whatever `optim` is.
    (
        {"use_muon": True, "optim": "adafactor", "adam_beta2": 0.95},
        {"optimizer.name": "muon", "optimizer.adam_b2": 0.95},
    ),
    # Weights decay with GaLore there, unlike in the Trainer.
    (
        {"use_galore": True, "finetuning_type": "full", "weight_decay": 0.1},
        {"optimizer.name": "galore", "optimizer.weight_decay": 0.1},
    ),
    (
        {"optim": "galore_adamw", "weight_decay": 0.1},
        {"optimizer.name": "galore", "optimizer.weight_decay": 0.0},
    ),
    (
        {"use_muon": True, "adam_beta2": 0.95},
        {
            "optimizer.name": "muon",
            "optimizer.adam_b2": 0.95,
            "optimizer.adjust_lr_fn": "match_rms_adamw",
        },
    ),
    (
        {"optim": "paged_adamw_8bit"},
        {"optimizer.name": "adamw_8bit", "optimizer.offload": True},
    ),
    ({"warmup_ratio": 0, "warmup_steps": 20}, {"schedule.warmup_steps": 20}),
    (
        {"warmup_steps": 20},
        {"schedule.warmup_steps": 20, "schedule.warmup_ratio": None},
    ),
]


@pytest.mark.parametrize(("changes", "ours"), KEYS, ids=[str(k) for k, _ in KEYS])
def test_a_key_becomes_ours(changes, ours, convert, value, data_folder):
    keys = COMMON | {"dataset_dir": str(data_folder), "dataset": "identity"}
    done = convert(keys | changes)
    assert (done.code, done.err) == (0, "")
    assert listed(done.out) == {"template"}
    for key, expected in ours.items():
        assert value(done.cfg, key) == expected, key


WITHOUT = {
    "val_size": 500,
    "mask_history": True,
    "use_badam": True,
    "streaming": True,
    "add_tokens": "<a>",
    "resize_vocab": True,
    "rope_scaling": "linear",
    "model_revision": "v2",
    "report_to": "swanlab",
    "push_to_hub": True,
    "adapter_name_or_path": "a,b",
    "save_strategy": "epoch",
    "early_stopping_steps": 3,
    "resume_from_checkpoint": "saves/checkpoint-10",
    "tokenized_path": "saves/dataset",
}


@pytest.mark.parametrize("key", WITHOUT)
def test_what_has_no_equivalent_is_listed(key, convert, data_folder):
    keys = COMMON | {"dataset_dir": str(data_folder), "dataset": "identity"}
    done = convert(keys | {key: WITHOUT[key]})
    assert done.code == 0
    assert any(line.startswith(f"  {key}") for line in done.out.splitlines())
    assert f"# - {key}" in done.text


# Optimizers in the place of `optim`: the remark that remains, or none.
INSTEAD = [
    ({"use_galore": True, "optim": "paged_adamw_8bit"}, "float32 here"),
    ({"use_galore": True, "optim": "adafactor"}, "the inner optimizer is Adam here"),
    ({"use_muon": True, "optim": "paged_adamw_8bit"}, None),
]


@pytest.mark.parametrize(("changes", "remark"), INSTEAD, ids=str)
def test_nothing_of_the_other_optimizer_is_left(changes, remark, convert, data_folder):
    keys = COMMON | {"dataset_dir": str(data_folder), "finetuning_type": "full"}
    done = convert(keys | changes)
    assert done.code == 0
    said = [line for line in done.out.splitlines() if "  optimizer.name: " in line]
    assert [remark in line for line in said] == [True] * (remark is not None)
    assert "8 bits" not in done.text


def test_of_an_adapter_to_continue_only_the_optimizer_s_settings_count(
    convert, value, data_folder
):
    keys = COMMON | {"dataset_dir": str(data_folder), "loraplus_lr_ratio": 4.0}
    keys |= {"adapter_name_or_path": "saves/a", "lora_dropout": 0.3}
    keys |= {"additional_target": "lm_head", "pissa_init": True}
    done = convert(keys)
    assert done.cfg.adapter.options == {}
    assert done.cfg.adapter.modules_to_save == ()
    assert value(done.cfg, "optimizer.lora_plus_ratio") == 4.0
    (said,) = [line for line in done.out.splitlines() if "adapter to continue" in line]
    assert {"lora_dropout", "additional_target", "pissa_init"} <= set(
        said.strip().split(": ")[0].split(", ")
    )


def test_an_unknown_key_is_listed_with_the_nearest(convert, data_folder):
    done = convert(COMMON | {"dataset_dir": str(data_folder), "lora_rnak": 4})
    assert done.code == 0
    assert "lora_rnak: is not a key that is known; did you mean 'lora_rank'" in done.out


def test_devices_multiply_the_batch(convert, data_folder):
    keys = COMMON | {"dataset_dir": str(data_folder)}
    done = convert(keys, "--devices", "4")
    assert done.cfg.training.batch_size == 32
    assert "1 a device x 8 accumulated x 4 devices" in done.out
