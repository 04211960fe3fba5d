"""The loss of a reward model beside that of TRL's own trainer, and its data."""

import json
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from jaxpeft import hf, models, objectives
from jaxpeft.config import DataSection
from jaxpeft.errors import InputError
from jaxpeft.hf import load_tokenizer
from jaxpeft.objectives.evaluation import figures

PAD, PAIRS, SEQ = 3, 3, 7
MARGIN = np.array([0.5, 0.0, 1.25], np.float32)


@pytest.fixture(scope="module")
def torch_model(tmp_path_factory):
    """transformers' reward model with random weights, and its folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        num_labels=1,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.LlamaForSequenceClassification(config)
    folder = tmp_path_factory.mktemp("reward")
    model.save_pretrained(folder)
    return model, folder


def batch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, SEQ + 1, 2 * PAIRS)
    places = np.broadcast_to(np.arange(SEQ), (2 * PAIRS, SEQ))
    real = places < lengths[:, None]
    tokens = np.where(real, rng.integers(4, 61, places.shape), PAD).astype(np.int32)
    return {
        "tokens": tokens,
        "positions": np.where(real, places, 0).astype(np.int32),
        "supervised": real & (places > 0),
        "margin": np.repeat(MARGIN, 2),
    }


def of_trl(model, micro, coefficient, margin):
    """(loss, gradient of the head, TRL's metrics) of its trainer's own function."""
    import torch
    import trl

    order = [*range(0, 2 * PAIRS, 2), *range(1, 2 * PAIRS, 2)]  # chosen ones first
    tokens = torch.tensor(micro["tokens"][order]).long()
    inputs: dict[str, Any] = {
        "input_ids": tokens,
        "attention_mask": (tokens != PAD).long(),
    }
    inputs |= {"margin": torch.tensor(MARGIN)} if margin else {}

    def same(x):
        return x

    metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    trainer: Any = SimpleNamespace(
        model=model.train(),
        args=SimpleNamespace(center_rewards_coefficient=coefficient),
        accelerator=SimpleNamespace(gather=same, gather_for_metrics=same),
        _total_train_tokens=0,
        _tp_size=1,
        _metrics=metrics,
    )
    loss: Any = trl.RewardTrainer.compute_loss(trainer, model, inputs)
    (slope,) = torch.autograd.grad(loss, [model.score.weight])
    return float(loss.detach()), slope.numpy().T, metrics["train"]


@pytest.mark.slow
@pytest.mark.parametrize(("coefficient", "margin"), [(None, False), (0.05, True)])
def test_loss_gradient_and_figures_are_trl_s(coefficient, margin, torch_model):
    model, folder = torch_model
    micro, cfg = batch(), models.config(folder)
    if not margin:
        micro["margin"] = np.zeros_like(micro["margin"])
    objective = objectives.reward(center_rewards_coefficient=coefficient)
    params, key = hf.load(folder, cfg), jax.random.key(0)

    def mean(head):
        loss = objective.loss({**params, "score": head}, (), micro, cfg, key)
        return loss.total / loss.weight, loss.metrics

    of_head = jax.value_and_grad(mean, has_aux=True)
    (value, said), slope = jax.jit(of_head)(params["score"])
    expected, theirs, metrics = of_trl(model, micro, coefficient, margin)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(slope["kernel"], theirs, atol=1e-5, rtol=1e-4)
    means = {name: float(x / n) for name, (x, n) in said.items()}
    assert means["rewards/accuracies"] == pytest.approx(metrics["accuracy"][0])
    assert means["rewards/margins"] == pytest.approx(metrics["margin"][0], rel=1e-4)
    both = (means["rewards/chosen"] + means["rewards/rejected"]) / 2
    assert both == pytest.approx(metrics["mean_reward"][0], rel=1e-4)
    report = figures(objective, [objective.sums(params, (), micro, cfg)])
    assert report["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert report["eval_pairs"] == PAIRS
    assert f"{report['eval_rewards/accuracies']:.1%}" in objective.in_words(report)


@pytest.mark.slow
def test_padding_of_an_evaluation_is_no_pair(torch_model):
    _, folder = torch_model
    cfg, micro, objective = models.config(folder), batch(), objectives.reward()
    params: Any = hf.load(folder, cfg)
    empty = {n: np.zeros((2, *x.shape[1:]), x.dtype) for n, x in micro.items()}
    padded = {n: np.concatenate([micro[n], empty[n]]) for n in micro}
    one, other = (objective.sums(params, (), b, cfg) for b in (micro, padded))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, other)
    said: Any = objective.predictions
    lines = said.lines(said.scores(params, padded, cfg), padded)
    assert [set(line) for line in lines] == [{"chosen", "rejected"}] * PAIRS


@pytest.fixture
def loaded(asset_model, tmp_path):
    def load(records, **settings):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in records))
        source = {"path": str(path), "format": "messages", **settings}
        section = DataSection.model_validate({"train": source, "shuffle": False})
        load_train = objectives.reward().load_train
        return load_train(
            section, load_tokenizer(asset_model), batch_size=2 * len(records), seed=0
        )

    return load


def pair(**more):
    return {"prompt": "How is it?", "chosen": "It is fine.", "rejected": "No.", **more}


def test_a_margin_is_its_record_s_or_none(loaded):
    batch = loaded([pair(margin=1.5), pair(), pair(margin="2")])[0]
    np.testing.assert_array_equal(batch["margin"], [1.5, 1.5, 0, 0, 2, 2])
    with pytest.raises(InputError, match="pairs.jsonl:2.*'margin' says by how much"):
        loaded([pair(), pair(margin="much")])
    batch = loaded([pair(margin="much", by=3)], fields={"margin": "by"})[0]
    np.testing.assert_array_equal(batch["margin"], [3, 3])


def test_a_coefficient_below_0_is_refused():
    with pytest.raises(InputError, match="objective.center_rewards_coefficient"):
        objectives.reward(center_rewards_coefficient=-0.1)
