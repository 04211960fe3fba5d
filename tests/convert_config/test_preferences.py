"""LLaMA-Factory's stages that learn from preferences become our objectives."""

import pytest

from jaxpeft.assembly.configuration import objective

MODEL = "Qwen/Qwen3-4B-Instruct-2507"
# What its examples of dpo, kto and rm have in common.
COMMON = {
    "model_name_or_path": MODEL,
    "trust_remote_code": True,
    "do_train": True,
    "finetuning_type": "lora",
    "lora_rank": 8,
    "lora_dropout": 0.1,
    "lora_target": "all",
    "template": "qwen3_nothink",
    "cutoff_len": 2048,
    "max_samples": 1000,
    "output_dir": "saves/qwen3-4b/lora/dpo",
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": 5.0e-6,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
}
DPO = COMMON | {"stage": "dpo", "dataset": "pairs", "pref_beta": 0.2}
KTO = COMMON | {"stage": "kto", "dataset": "labelled", "kto_chosen_weight": 1.5}

# What a file has besides, and what becomes of it.
CASES = {
    "dpo": (
        DPO,
        {
            "name": "dpo",
            "beta": 0.2,
            "loss_type": "sigmoid",
            "reference": "adapter_off",
        },
    ),
    "smoothed, and likelihood": (
        DPO | {"dpo_label_smoothing": 0.1, "pref_ftx": 0.5},
        {"label_smoothing": 0.1, "sft_weight": 0.5},
    ),
    "ipo": (DPO | {"pref_loss": "ipo"}, {"name": "dpo", "loss_type": "ipo"}),
    "orpo": (DPO | {"pref_loss": "orpo"}, {"name": "orpo", "beta": 0.2}),
    "simpo": (
        DPO | {"pref_loss": "simpo", "pref_beta": 2.0, "simpo_gamma": 1.2},
        {"name": "simpo", "beta": 2.0, "gamma": 1.2},
    ),
    "full": (DPO | {"finetuning_type": "full"}, {"reference": "start"}),
    "the same reference": (DPO | {"ref_model": MODEL}, {"reference": "adapter_off"}),
    "from an adapter": (
        DPO
        | {"adapter_name_or_path": "saves/sft", "ref_model": MODEL}
        | {"ref_model_adapters": "saves/sft"},
        {"reference": "start"},
    ),
    "an adapter over its base": (
        DPO | {"adapter_name_or_path": "saves/sft"},
        {"reference": "adapter_off"},
    ),
}


@pytest.fixture
def own(convert, data_folder):
    def run(keys):
        done = convert(keys | {"dataset_dir": str(data_folder)})
        assert (done.code, done.err) == (0, ""), done.err
        return done

    return run


@pytest.mark.parametrize("name", CASES)
def test_a_stage_is_an_objective(name, own):
    keys, expected = CASES[name]
    done = own(keys)
    section = done.cfg.objective.model_dump()
    assert {key: section[key] for key in expected} == expected
    objective(done.cfg)  # its numbers are in their ranges
    assert done.cfg.training.batch_size == 16  # 8 pairs
    assert "x 2 sequences of a pair" in done.text
    assert "lora_dropout" not in done.text
    assert done.cfg.data.train[0].format == "sharegpt"


def test_labelled_answers(own):
    done = own(KTO)
    section = done.cfg.objective.model_dump()
    assert (section["name"], section["desirable_weight"]) == ("kto", 1.5)
    assert (section["undesirable_weight"], section["reference"]) == (1.0, "adapter_off")
    training = done.cfg.training
    assert (training.batch_size, training.gradient_accumulation_steps) == (8, 4)
    (source,) = done.cfg.data.train
    assert (source.format, source.fields) == ("messages", {"label": "wanted"})


def test_a_reward_model(own):
    done = own(COMMON | {"stage": "rm", "dataset": "pairs"})
    assert done.cfg.objective.name == "reward" and done.cfg.training.batch_size == 16


REFUSED = {
    "ppo": (DPO | {"stage": "ppo", "dataset": "identity"}, "stage", "dpo"),
    "kto_pair": (DPO | {"pref_loss": "kto_pair"}, "pref_loss", "stage: kto"),
    "another reference": (DPO | {"ref_model": "org/other"}, "ref_model", "merge"),
    "answers for pairs": (DPO | {"dataset": "identity"}, "dataset", "ranking: true"),
    "pairs for answers": (KTO | {"dataset": "pairs"}, "dataset", "stage: dpo"),
    "without labels": (KTO | {"dataset": "identity"}, "dataset", "kto_tag"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learned_is_refused(name, convert, data_folder):
    keys, key, remedy = REFUSED[name]
    done = convert(keys | {"dataset_dir": str(data_folder)})
    assert done.code == 2 and done.cfg is None
    lines = [s for s in done.err.splitlines() if s.startswith(f"error: {key}: found")]
    assert remedy in lines[0]


def test_what_is_not_minimised_is_listed(own):
    changes = {"pref_bco_weight": 0.3, "ld_alpha": 0.5, "neftune_noise_alpha": 5}
    out = own(DPO | changes | {"pref_loss": "orpo", "pref_ftx": 1.0}).out
    for key in (*changes, "pref_ftx"):
        assert f"  {key}: " in out.partition("without equivalent:")[2]
