"""Training arguments as transformers writes them, beside what its Trainer does."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from peft import (
    IA3Config,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
)
from peft.utils import constants
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    get_scheduler,
)
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from jaxpeft import optim
from jaxpeft.assembly import updates
from jaxpeft.assembly.adapter import rules_of
from jaxpeft.convert_config.optimizers import OPTIMIZERS, SCHEDULES


@pytest.fixture
def arguments(tmp_path):
    """arguments(**settings): TrainingArguments, with a folder to write to."""

    def make(**settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of accelerators that are not here
            return TrainingArguments(str(tmp_path / "out"), use_cpu=True, **settings)

    return make


@pytest.fixture
def converted(convert):
    """converted(arguments, *options): their JSON, translated."""

    def run(args, *options, **keys):
        content = json.loads(args.to_json_string()) | keys
        options = ("--model", "org/model", "--data", "mine.json", *options)
        done = convert(content, *options, kind="json")
        assert (done.code, done.err) == (0, "")
        return done

    return run


def test_all_fields_at_their_defaults_are_accounted_for(arguments, converted, value):
    done = converted(arguments())
    assert "without equivalent" not in done.out
    expected = {
        "model.path": "org/model",
        "adapter.method": "full",
        "optimizer.name": "adamw",
        "optimizer.learning_rate": 5e-5,
        "optimizer.weight_decay": 0.0,
        "optimizer.max_grad_norm": 1.0,
        "schedule.name": "linear",
        "training.num_epochs": 3.0,
        "training.batch_size": 8,
        "training.save_steps": 500,
        "training.logging_steps": 500,
        "seed": 42,
    }
    assert {key: value(done.cfg, key) for key in expected} == expected


# Some thirty fields, each at a value that asks for something.
ASKED = {
    "max_steps": 100,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr": 1e-6},
    "warmup_steps": 0.1,
    "optim": "galore_adamw",
    "optim_args": "rank=64, scale=0.5",
    "optim_target_modules": ["self_attn"],
    "weight_decay": 0.1,
    "gradient_accumulation_steps": 4,
    "max_grad_norm": 0.5,
    "label_smoothing_factor": 0.1,
    "bf16": True,
    "gradient_checkpointing": True,
    "neftune_noise_alpha": 5.0,
    "logging_steps": 0.02,
    "report_to": ["mlflow"],
    "eval_strategy": "steps",
    "eval_steps": 20,
    "eval_delay": 10,
    "per_device_eval_batch_size": 2,
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "push_to_hub": True,
    "metric_for_best_model": "accuracy",
    "data_seed": 1,
    "seed": 3,
    "deepspeed": "ds_z3_config.json",
    "train_sampling_strategy": "group_by_length",
    "include_for_metrics": ["inputs"],
    "auto_find_batch_size": True,
}
MISSING = {
    "report_to: mlflow",
    "eval_delay",
    "save_strategy",
    "push_to_hub",
    "metric_for_best_model",
    "data_seed",
    "train_sampling_strategy",
    "include_for_metrics",
    "auto_find_batch_size",
}


def test_fields_that_ask_for_something(arguments, converted, value):
    done = converted(arguments(), "--eval-data", "held_out.json", **ASKED)
    expected = {
        "model.dtype": "bfloat16",
        "model.remat": "full",
        "optimizer.name": "galore",
        "optimizer.rank": 64,
        "optimizer.scale": 0.5,
        "optimizer.target_modules": ["self_attn"],
        "optimizer.weight_decay": 0.0,  # the Trainer gives GaLore none
        "optimizer.max_grad_norm": 0.5,
        "objective.label_smoothing": 0.1,
        "objective.neftune_noise_alpha": 5.0,
        "schedule.name": "cosine_with_min_lr",
        "schedule.min_lr": 1e-6,
        "schedule.warmup_ratio": 0.1,
        "training.max_steps": 100,
        "training.batch_size": 32,
        "training.gradient_accumulation_steps": 4,
        "training.logging_steps": 2,
        "training.eval_steps": 20,
        "training.save_total_limit": 2,
        "data.eval_batch_size": 2,
        "mesh.fsdp": -1,
        "seed": 3,
    }
    assert {key: value(done.cfg, key) for key in expected} == expected
    _, _, tail = done.out.partition("without equivalent:\n")
    assert {key for key in MISSING if f"  {key}: " in tail} == MISSING
    assert len(tail.splitlines()) == len(MISSING) + 1  # and the line that it is done


def test_the_fields_of_trl_s_sft_config(arguments, converted, value):
    """By https://github.com/huggingface/trl, trl/trainer/sft_config.py."""
    sft = {
        "model_init_kwargs": None,
        "trust_remote_code": False,
        "chat_template_path": None,
        "dataset_text_field": "text",
        "dataset_kwargs": None,
        "dataset_num_proc": None,
        "eos_token": None,
        "pad_token": None,
        "max_length": 512,
        "truncation_mode": "keep_start",
        "shuffle_dataset": False,
        "packing": True,
        "packing_strategy": "bfd",
        "padding_free": False,
        "pad_to_multiple_of": None,
        "eval_packing": None,
        "completion_only_loss": None,
        "assistant_only_loss": True,
        "loss_type": "chunked_nll",
        "activation_offloading": False,
    }
    done = converted(arguments(), **sft)
    assert "without equivalent" not in done.out
    assert value(done.cfg, "data.max_length") == 512
    assert value(done.cfg, "data.packing") is True
    assert value(done.cfg, "data.train_on") == "assistant"
    assert "objective" not in done.text
    done = converted(arguments(), **sft | {"loss_type": "dft"})
    assert value(done.cfg, "objective.loss_type") == "dft"
    done = converted(arguments(), **sft | {"assistant_only_loss": False})
    assert value(done.cfg, "data.train_on") == "all"


UNSAID = {"max_steps": 100, "eval_strategy": "steps", "eval_steps": 0.1}
# Keys whose null or absence asks for something: our value, and what is said.
NULLS = [
    ({}, "training.save_total_limit", None, None),
    ({"save_total_limit": None}, "training.save_total_limit", None, None),
    ({}, "data.max_length", 1024, "data.max_length: not said there"),
    ({"max_length": 300}, "data.max_length", 300, None),
    ({"max_length": None}, "data.max_length", 64, "nothing is cut there"),
    ({"max_seq_length": None}, "data.max_length", 1024, None),
    (UNSAID, "training.eval_steps", 10, None),
    ({**UNSAID, "max_steps": -1}, "training.eval_steps", 50, "eval_steps: is a share"),
    ({"report_to": ["all"]}, "training.report_to", ("all",), None),
]


@pytest.mark.parametrize(("keys", "ours", "expected", "said"), NULLS, ids=str)
def test_what_is_left_open_there_is_not_filled_with_our_defaults(
    keys, ours, expected, said, arguments, convert, value, tmp_path
):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    content = json.loads(arguments().to_json_string()) | keys
    given = ("--model", tmp_path, "--eval-data", "held_out.json")
    done = convert(content, *given, kind="json")
    assert (done.code, done.err) == (0, "")
    assert value(done.cfg, ours) == expected
    assert said is None or said in done.out
    if not said:
        assert f"  {ours}: " not in done.out


def test_nothing_is_cut_there_of_a_model_that_is_not_here(arguments, converted):
    done = converted(arguments(), max_length=None)
    assert "  max_length: null cuts nothing there; raise data.max_length" in done.out


# What trains, and in which precision: our dtype, and whether it is said that weights
# are stored in float32 there.
PRECISIONS = [
    ({"bf16": True}, "bfloat16", True),
    ({"fp16": True}, "float32", False),
    ({}, "bfloat16", True),
    ({"bf16": True, "pure_bf16": True}, "bfloat16", False),
]


@pytest.mark.parametrize(("keys", "dtype", "said"), PRECISIONS, ids=str)
def test_full_fine_tuning_in_16_bits_is_warned_of(
    keys, dtype, said, arguments, converted, convert
):
    theirs = {"model_name_or_path": "org/model", "dataset": "mine"}
    done = [convert(theirs | keys | {"finetuning_type": "full"})]
    if "pure_bf16" not in keys:
        done += [converted(arguments(), **keys)]
        assert "say float32" not in convert(theirs | keys).out  # an adapter is float32
    for one in done:
        assert one.cfg.model.dtype == dtype
        assert ("say float32 for that" in one.out) == said


def test_every_optimizer_of_the_trainer_has_its_row():
    names = {str(name.value) for name in OptimizerNames}
    assert names <= set(OPTIMIZERS)
    assert {row.name for row in OPTIMIZERS.values()} <= set(optim.OPTIMIZERS.entries)


def test_every_schedule_of_the_trainer_has_its_row():
    assert {str(kind.value) for kind in SchedulerType} == set(SCHEDULES)


# Those that the Trainer can build without an accelerator and with what is installed.
BUILT = ["adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_4bit"]
BUILT += ["adafactor", "sgd", "adagrad", "rmsprop", "lion_32bit", "lion_8bit"]
BUILT += ["ademamix", "grokadamw", "stable_adamw", "galore_adamw", "apollo_adamw"]
BUILT += ["schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam", "lomo"]


@pytest.fixture(scope="module")
def llama():
    """A model of a few weights, in the modules that its optimizers look for."""
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("name", BUILT)
def test_optimizers_get_all_settings_that_they_have_in_the_trainer(
    name, arguments, converted, llama
):
    settings = {"learning_rate": 3e-4, "adam_beta1": 0.8, "adam_beta2": 0.97}
    settings |= {"adam_epsilon": 1e-6, "weight_decay": 0.05, "optim": name}
    settings |= {"optim_target_modules": ["self_attn"], "report_to": "none"}
    args = arguments(lr_scheduler_type="constant", **settings)
    # Other optimizers treat all matrices alike, which the command says.
    known = {} if name in PROJECTED else {"optim_target_modules": None}
    cfg = converted(args, **known).cfg
    own = optim.OPTIMIZERS.parameters(cfg.optimizer.name)
    ours = {key: own[key].default for key in optim.OPTIMIZERS.keys(cfg.optimizer.name)}
    ours |= cfg.optimizer.options | {"lr": cfg.optimizer.learning_rate}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the model is not for this machine
        built = Trainer(llama, args).create_optimizer()
    # The first group decays, the last is projected where there is one.
    theirs = {**built.param_groups[0], **built.param_groups[-1]}
    decays = {group.get("weight_decay", 0.0) for group in built.param_groups}
    theirs["weight_decay"] = max(decays)
    theirs |= dict(zip(("b1", "b2", "b3"), theirs.get("betas", ()), strict=False))
    same = set(ours) & set(theirs)
    assert {"lr", "weight_decay"} <= same
    assert {key: ours[key] for key in same} == {
        key: pytest.approx(theirs[key]) for key in same
    }


PROJECTED = ("galore_adamw", "apollo_adamw")


SCHEDULED = [
    ({"lr_scheduler_type": "linear", "warmup_steps": 5}),
    ({"lr_scheduler_type": "linear", "warmup_steps": 0.13}),
    ({"lr_scheduler_type": "cosine", "warmup_steps": 0.1}),
    (
        {
            "lr_scheduler_type": "cosine_with_restarts",
            "lr_scheduler_kwargs": {"num_cycles": 3},
        }
    ),
    (
        {
            "lr_scheduler_type": "polynomial",
            "lr_scheduler_kwargs": {"power": 2.0, "lr_end": 1e-5},
            "warmup_steps": 4,
        }
    ),
    ({"lr_scheduler_type": "polynomial", "warmup_steps": 4}),
    ({"lr_scheduler_type": "constant", "warmup_steps": 5}),
    ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5}),
    ({"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 5}),
    (
        {
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
        }
    ),
    (
        {
            "lr_scheduler_type": "cosine_warmup_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr": 1e-4, "warmup_lr_rate": 0.2},
            "warmup_steps": 5,
        }
    ),
    (
        {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_decay_steps": 10, "decay_type": "linear"},
            "warmup_steps": 5,
        }
    ),
]


def test_all_schedules_that_depend_on_the_step_alone_are_compared():
    compared = {settings["lr_scheduler_type"] for settings in SCHEDULED}
    assert set(SCHEDULES) - compared == {"reduce_lr_on_plateau", "greedy"}


@pytest.mark.parametrize("settings", SCHEDULED, ids=str)
def test_rates_are_the_trainer_s_at_every_step(settings, arguments, converted):
    steps = 40
    args = arguments(max_steps=steps, learning_rate=2e-3, **settings)
    cfg = converted(args).cfg
    ours = updates.updates(cfg, steps).rate
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=args.learning_rate)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),
    )
    theirs = []
    for _ in range(steps):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    rates = jax.jit(jax.vmap(ours))(jnp.arange(steps))
    np.testing.assert_allclose(rates, theirs, rtol=2e-5, atol=1e-9)


PEFT = {
    "lora": (
        LoraConfig(
            r=4,
            lora_alpha=16,
            lora_dropout=0.1,
            target_modules=["q_proj", "v_proj"],
            modules_to_save=["lm_head"],
            bias="lora_only",
            use_rslora=True,
            rank_pattern={"q_proj": 2},
            layers_to_transform=[0, 1],
            base_model_name_or_path="org/base",
        ),
        {
            "adapter.method": "lora",
            "adapter.r": 4,
            "adapter.lora_alpha": 16,
            "adapter.lora_dropout": 0.1,
            "adapter.modules_to_save": ("lm_head",),
            "adapter.bias": "lora_only",
            "adapter.use_rslora": True,
            "adapter.rank_pattern": {"q_proj": 2},
            "adapter.layers_to_transform": (0, 1),
            "model.path": "org/base",
        },
    ),
    "dora": (
        LoraConfig(use_dora=True, target_modules="all-linear"),
        {"adapter.method": "dora", "adapter.target_modules": "all-linear"},
    ),
    "pissa": (
        LoraConfig(init_lora_weights="pissa_niter_4", target_modules=r".*\.q_proj"),
        {"adapter.init_lora_weights": "pissa_niter_4"},
    ),
    "ia3": (
        IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        {"adapter.method": "ia3", "adapter.feedforward_modules": ["down_proj"]},
    ),
    "vera": (
        VeraConfig(r=64, target_modules=["q_proj"], d_initial=0.2),
        {"adapter.method": "vera", "adapter.r": 64, "adapter.d_initial": 0.2},
    ),
    "oft": (
        OFTConfig(r=4, oft_block_size=0, target_modules=["q_proj"], block_share=True),
        {"adapter.method": "oft", "adapter.r": 4, "adapter.block_share": True},
    ),
    "prompt_tuning": (
        PromptTuningConfig(num_virtual_tokens=7, task_type="CAUSAL_LM"),
        {"adapter.method": "prompt_tuning", "adapter.num_virtual_tokens": 7},
    ),
    "prefix_tuning": (
        PrefixTuningConfig(num_virtual_tokens=7, task_type="CAUSAL_LM"),
        {"adapter.method": "prefix_tuning", "adapter.num_virtual_tokens": 7},
    ),
}


@pytest.mark.parametrize("name", PEFT)
def test_peft_s_configs_become_the_adapter(name, arguments, convert, value, tmp_path):
    config, expected = PEFT[name]
    config.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(arguments().to_json_string())
    given = ("--peft", file, "--data", "mine.json")
    model = () if config.base_model_name_or_path else ("--model", "org/base")
    done = convert(content, *given, *model, kind="json")
    assert (done.code, done.err) == (0, "")
    assert "without equivalent" not in done.out
    assert {key: value(done.cfg, key) for key in expected} == expected
    rules_of(done.cfg.adapter)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "mistral", "gpt2"])
@pytest.mark.parametrize("config", [LoraConfig, OFTConfig, VeraConfig, IA3Config])
def test_without_targets_the_modules_are_those_of_peft(
    config, kind, arguments, convert, tmp_path
):
    config().save_pretrained(tmp_path / "adapter")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": kind}))
    given = ("--peft", tmp_path / "adapter" / "adapter_config.json")
    content = json.loads(arguments().to_json_string())
    done = convert(content, *given, "--model", tmp_path / "model", kind="json")
    method = config().peft_type.value
    theirs = getattr(
        constants, f"TRANSFORMERS_MODELS_TO_{method}_TARGET_MODULES_MAPPING"
    )
    assert sorted(done.cfg.adapter.target_modules) == sorted(theirs[kind])
    assert "adapter.target_modules: what PEFT takes where it is null" in done.out
    # Of a model that is not here, too, they are not all linear layers.
    elsewhere = convert(content, *given, "--model", "org/llama", kind="json")
    assert sorted(elsewhere.cfg.adapter.target_modules) == sorted(theirs["llama"])


def test_what_peft_has_beyond_us_is_listed(arguments, convert, tmp_path):
    config = LoraConfig(target_modules=["q_proj"], lora_bias=True)
    config.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(arguments().to_json_string())
    done = convert(content, "--peft", file, kind="json")
    assert done.code == 0
    assert "  peft.lora_bias: " in done.out
    # Neither the model nor the data are training arguments.
    assert "  model: is no training argument; give --model" in done.out
    assert "  train_dataset: is no training argument; give --data" in done.out
    assert "TODO" in done.text


def test_a_method_that_is_not_built_is_refused(arguments, convert, tmp_path):
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"peft_type": "LOHA"}))
    content = json.loads(arguments().to_json_string())
    done = convert(content, "--peft", file, kind="json")
    assert done.code == 2
    assert "peft_type: found 'LOHA'; can be LORA, IA3" in done.err
