"""TRL's configurations of preference training, as its own classes write them."""

import importlib
import json
import warnings
from typing import Any

import pytest

from jaxpeft.convert_config.trl import trainer_of

LORA = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1}


@pytest.fixture(scope="module")
def classes():
    """The classes, which are slow to import."""
    trl: Any = importlib.import_module("trl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these may change, it says
        from trl.experimental import cpo, orpo
    found = {
        "dpo": trl.DPOConfig,
        "kto": trl.KTOConfig,
        "reward": trl.RewardConfig,
        "sft": trl.SFTConfig,
        "online": trl.GRPOConfig,
    }
    return found | {"cpo": cpo.CPOConfig, "orpo": orpo.ORPOConfig}


@pytest.fixture
def keys(classes, tmp_path):
    """keys("dpo", **settings): the JSON of a configuration of TRL's."""

    def make(name, **settings):
        made = classes[name](
            str(tmp_path / "out"), use_cpu=True, bf16=False, **settings
        )
        return json.loads(made.to_json_string())

    return make


@pytest.fixture
def converted(convert, keys, tmp_path):
    """converted("dpo", **settings): translated, beside a LoRA."""

    def run(name, *, peft=True, **settings):
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(LORA))
        options = ["--model", "org/model", "--data", "pairs.json"]
        options += ["--peft", str(path)] if peft else []
        return convert(keys(name, **settings), *options, kind="json")

    return run


def test_each_is_told_by_its_own_keys(classes, keys):
    for name in classes:
        assert trainer_of(keys(name)) == (None if name == "sft" else name)
    assert trainer_of({"beta": 0.1}) == "dpo" and trainer_of({"seed": 1}) is None


# A configuration of theirs, and what becomes of it.
CASES = [
    (
        ("dpo", {"beta": 0.3}),
        {"beta": 0.3, "loss_type": "sigmoid", "reference": "adapter_off"},
    ),
    (("dpo", {"loss_type": ["ipo"], "peft": False}), {"reference": "start"}),
    (("dpo", {"precompute_ref_log_probs": True}), {"precompute_reference": True}),
    (
        ("dpo", {"loss_type": ["robust"], "label_smoothing": 0.2}),
        {"loss_type": "robust", "label_smoothing": 0.2},
    ),
    (
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [0.5, 1.0]}),
        {"loss_type": "sigmoid", "sft_weight": 2.0},
    ),
    (("orpo", {"beta": 0.2}), {"beta": 0.2}),
    (
        ("cpo", {"loss_type": "hinge", "cpo_alpha": 0.5}),
        {"name": "cpo", "loss_type": "hinge", "cpo_alpha": 0.5},
    ),
    (
        ("cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}),
        {"name": "simpo", "beta": 2.0, "gamma": 1.0, "sft_weight": 1.0},
    ),
    (
        ("kto", {"desirable_weight": 1.3}),
        {"desirable_weight": 1.3, "undesirable_weight": 1.0},
    ),
    (
        ("reward", {"center_rewards_coefficient": 0.01}),
        {"center_rewards_coefficient": 0.01},
    ),
]


@pytest.mark.parametrize(("given", "expected"), CASES)
def test_a_configuration_is_an_objective(given, expected, converted):
    name, settings = given
    done = converted(name, **settings)
    assert (done.code, done.err) == (0, ""), done.err
    section = done.cfg.objective.model_dump()
    expected = {"name": name} | expected
    assert {key: section[key] for key in expected} == expected
    assert done.cfg.data.train[0].format == "messages"
    assert done.cfg.training.batch_size == (8 if name == "kto" else 16)
    assert done.cfg.optimizer.learning_rate == (1e-4 if name == "reward" else 1e-6)
    assert "adapter.lora_dropout" not in done.text
    assert "is not a key that is known" not in done.out


@pytest.mark.parametrize(("given", "told"), [(None, False), (0.01, True)])
def test_all_keys_of_supervised_training_are_known(given, told, converted):
    done = converted("sft", router_aux_loss_coef=given)
    assert (done.code, done.err) == (0, ""), done.err
    assert "is not a key that is known" not in done.out
    assert ("router_aux_loss_coef: a router" in done.out) is told


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("dpo", {"loss_type": ["exo_pair"]}, "loss_type: found"),
        ("dpo", {"loss_type": ["sigmoid", "hinge"]}, "loss_type: found"),
        ("kto", {"loss_type": "apo_zero_unpaired"}, "loss_type: found"),
        ("online", {}, "num_generations: found 8; no answers are written"),
    ],
)
def test_what_cannot_be_minimised_is_refused(name, settings, words, converted):
    done = converted(name, **settings)
    assert done.code == 2 and done.cfg is None
    assert words in done.err


def test_dropout_stays_where_they_keep_it(converted):
    done = converted("dpo", disable_dropout=False)
    assert done.cfg.adapter.options["lora_dropout"] == 0.1
