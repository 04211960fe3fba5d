"""Twelve steps of LoRA beside torch + peft from the same adapter, on the same batches.

AdamW, cosine with warmup, clipping, two accumulation steps with unequal numbers of
supervised tokens. The differences are logged: `pytest --log-cli-level INFO`.
"""

import logging

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from jaxpeft import adapters, hf, kernel, models, optim, tree
from jaxpeft.assembly.step import Frozen, TrainState, make_train_step

LOG = logging.getLogger(__name__)
STEPS, PARTS, ROWS, LENGTH = 12, 2, 3, 18
RATE, WARMUP, DECAY, CLIP = 5e-3, 3, 0.05, 1.0


@pytest.fixture(scope="module")
def batches():
    """Of each step: tokens (parts, rows, length), lengths and first supervised."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 61, (STEPS, PARTS, ROWS, LENGTH)).astype(np.int32)
    lengths = rng.integers(6, LENGTH + 1, tokens.shape[:-1])
    firsts = rng.integers(1, 5, lengths.shape)
    places = np.arange(LENGTH)
    inside = places < lengths[..., None]
    answer = inside & (places >= firsts[..., None])
    return np.where(inside, tokens, 0), inside, answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_torch):
    """A model and a start adapter, both written by the reference."""
    folder = tmp_path_factory.mktemp("parity")
    make_torch().save_pretrained(folder / "model")
    model = transformers.LlamaForCausalLM.from_pretrained(folder / "model")
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    torch.manual_seed(1)
    peft.get_peft_model(model, config).save_pretrained(folder / "start")
    return folder


@pytest.fixture(scope="module")
def there(folder, batches):
    """(losses, gradient norms, model after) of torch."""
    base = transformers.LlamaForCausalLM.from_pretrained(folder / "model")
    model = peft.PeftModel.from_pretrained(base, folder / "start", is_trainable=True)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY)
    schedule = transformers.get_scheduler(
        "cosine", optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS
    )
    losses, norms = [], []
    for tokens, inside, answer in zip(*batches):
        labels = np.where(answer, tokens, -100)
        count = int(answer[..., 1:].sum())
        total = 0.0
        for part in range(PARTS):
            logits = model(
                input_ids=torch.from_numpy(tokens[part]).long(),
                attention_mask=torch.from_numpy(inside[part]).long(),
            ).logits
            nll = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1),
                torch.from_numpy(labels[part, :, 1:]).long().flatten(),
                ignore_index=-100,
                reduction="sum",
            )
            (nll / count).backward()
            total += nll.item()
        norms.append(float(torch.nn.utils.clip_grad_norm_(weights, CLIP)))
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total / count)
    model.save_pretrained(folder / "end")
    return np.array(losses), np.array(norms)


def shift(x, fill):
    return np.concatenate([x[..., 1:], np.full_like(x[..., :1], fill)], axis=-1)


@pytest.fixture(scope="module")
def here(folder, batches):
    """(losses, gradient norms, params before, params after) of jaxpeft."""
    cfg = models.config(folder / "model")
    params = hf.load_adapter(hf.load(folder / "model", cfg), folder / "start", cfg)
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    tx = optim.make(
        {
            "name": "adamw",
            "learning_rate": RATE,
            "weight_decay": DECAY,
            "max_grad_norm": CLIP,
        },
        {"name": "cosine", "warmup_steps": WARMUP},
        STEPS,
    )
    step = jax.jit(make_train_step(cfg, tx))
    state = TrainState.create(trainable, tx, jax.random.key(0))
    losses, norms = [], []
    for tokens, inside, answer in zip(*batches):
        places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
        batch = {
            "tokens": tokens,
            "targets": shift(tokens, 0),
            "supervised": shift(answer, False),
            "positions": places,
            "segments": inside.astype(np.int32),
        }
        state, metrics = step(state, Frozen(frozen), batch)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["grad_norm"]))
    after = tree.combine(state.params, frozen)
    expected = hf.load_adapter(hf.load(folder / "model", cfg), folder / "end", cfg)
    return np.array(losses), np.array(norms), params, after, expected


@pytest.mark.slow
def test_each_loss(there, here):
    losses, norms = there
    assert (norms > CLIP).any()  # the clipping is put to use
    worst = float(np.max(np.abs(here[0] - losses) / losses))
    LOG.info("losses from %.4f to %.4f", losses[0], losses[-1])
    LOG.info("largest relative difference of a loss: %.1e", worst)
    assert worst < 1e-3
    np.testing.assert_allclose(here[1], norms, rtol=1e-3)


def test_the_adapter_s_change(there, here):
    *_, before, after, expected = here
    changes = {}
    for name, start in kernel.nodes(before).items():
        ours, theirs = kernel.nodes(after)[name], kernel.nodes(expected)[name]
        for field in ("a", "b"):
            x, y, z = (np.asarray(getattr(n, field)) for n in (start, ours, theirs))
            moved = np.linalg.norm(z - x)
            assert moved > 0
            changes[f"{name}.{field}"] = float(np.linalg.norm(y - z) / moved)
    worst = max(changes, key=lambda name: changes[name])
    LOG.info("largest difference of a change: %.1e, %s", changes[worst], worst)
    assert changes[worst] < 2e-2, worst
