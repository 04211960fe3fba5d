"""Ten steps of preference tuning beside TRL, from the same adapter on the same pairs.

The differences are logged: `pytest --log-cli-level INFO`.
"""

import json
import logging
import warnings
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
import trl

from jaxpeft import adapters, config, hf, kernel, models, objectives, optim, tree
from jaxpeft.assembly.step import Frozen, TrainState, make_train_step

pytestmark = pytest.mark.slow
LOG = logging.getLogger(__name__)
STEPS, PAIRS, RATE, LENGTH = 10, 2, 1e-3, 96
FIGURES = ("nll_loss", "kl")  # besides those with a / in their names


class Course(NamedTuple):
    """What a trainer did: the batches of its steps, what it logged, its adapter."""

    batches: list[dict[str, np.ndarray]]
    logged: dict[str, np.ndarray]
    end: str


@pytest.fixture(scope="module")
def assets():
    return Path(str(resources.files("jaxpeft"))) / "assets"


@pytest.fixture(scope="module")
def experimental():
    """What TRL has for those who have read that it may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental import cpo, orpo
    return {
        "cpo": (cpo.CPOTrainer, cpo.CPOConfig),
        "orpo": (orpo.ORPOTrainer, orpo.ORPOConfig),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory, assets):
    """A small model in float32, and an adapter that already does something."""
    folder = tmp_path_factory.mktemp("trl")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        assets / "tiny-llama", dtype=torch.float32, num_hidden_layers=2
    )
    model.save_pretrained(folder / "model")
    lora = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    torch.manual_seed(1)
    adapted = peft.get_peft_model(model, lora)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    adapted.save_pretrained(folder / "start")
    return folder


@pytest.fixture(scope="module")
def tokenizer(assets):
    return transformers.AutoTokenizer.from_pretrained(assets / "tiny-llama")


@pytest.fixture(scope="module")
def records(assets):
    """Prompts with the report that was written of them, and with another's."""
    rows = json.loads((assets / "weather" / "train.json").read_text())
    rows = rows[: STEPS * PAIRS]
    others = rows[1:] + rows[:1]

    def turn(role, content):
        return [{"role": role, "content": content}]

    return [
        {
            "prompt": turn("user", f"{row['instruction']}\n{row['input']}"),
            "chosen": turn("assistant", row["output"]),
            "rejected": turn("assistant", other["output"]),
        }
        for row, other in zip(rows, others)
    ]


@pytest.fixture(scope="module")
def there(folder, tokenizer, records, tmp_path_factory):
    """(trainer's class, its settings) -> a `Course`."""

    def follow(trainer, settings, rows=records, **keys):
        out = tmp_path_factory.mktemp("out")
        keys = {"per_device_train_batch_size": PAIRS} | keys
        args = settings(
            output_dir=str(out),
            max_steps=STEPS,
            max_length=LENGTH,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            logging_steps=1,
            **{"bf16": False, "use_cpu": True, "gradient_checkpointing": False},
            **{"report_to": [], "save_strategy": "no", "disable_tqdm": True},
            **keys,
        )
        base = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
        model = peft.PeftModel.from_pretrained(
            base, folder / "start", is_trainable=True
        )
        made = trainer(
            model=model,
            args=args,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        batches, losses, compute = [], [], made.compute_loss

        def seen(model, inputs, *args, **kwargs):
            loss = compute(model, inputs, *args, **kwargs)
            batches.append(rows_of(inputs))
            losses.append(float(loss.detach()))
            return loss

        made.compute_loss = seen
        made.train()
        made.model.save_pretrained(out / "end", selected_adapters=["default"])
        lines = [line for line in made.state.log_history if "loss" in line]
        names = [name for name in lines[0] if "/" in name or name in FIGURES]
        logged = {name: np.array([line[name] for line in lines]) for name in names}
        return Course(batches, {"loss": np.array(losses), **logged}, str(out / "end"))

    return follow


def rows_of(inputs):
    """A batch of TRL's as one of ours: chosen and rejected in turns, or as they are."""
    if "label" in inputs:  # wide enough for a prompt with another's answer
        width = max(inputs[n].shape[1] for n in ("input_ids", "KL_input_ids"))
        names = ("input_ids", "attention_mask", "completion_mask")
        parts = (inputs[name].numpy() for name in names)
        wide = [np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in parts]
        labels = torch.as_tensor(inputs["label"]).float().numpy()
        return batch_of(*wide) | {"label": labels}
    if "completion_mask" in inputs:  # the chosen ones, then the rejected ones
        names = ("input_ids", "attention_mask", "completion_mask")
        halves = [[*inputs[name].numpy().reshape(2, PAIRS, -1)] for name in names]
    else:
        halves = []
        for name in ("input_ids", "attention_mask", "labels"):
            both = [inputs[f"{side}_{name}"].numpy() for side in ("chosen", "rejected")]
            width = max(x.shape[1] for x in both)
            fill = -100 if name == "labels" else 0
            halves.append(
                [
                    np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=fill)
                    for x in both
                ]
            )
        halves[2] = [x != -100 for x in halves[2]]
    return batch_of(*(np.stack(x, 1).reshape(2 * PAIRS, -1) for x in halves))


def batch_of(tokens, inside, answer):
    """The arrays of our batches: of tokens, where there are some, and those learned."""

    def shift(x):
        return np.concatenate([x[:, 1:], np.zeros_like(x[:, :1])], axis=1)

    return {
        "tokens": tokens.astype(np.int32),
        "targets": shift(tokens).astype(np.int32),
        "supervised": shift(answer).astype(bool),
        "positions": np.where(inside > 0, np.arange(tokens.shape[1]), 0).astype("i4"),
    }


def here(folder, objective, batches):
    """({name: each step's figure}, params before, params after) of jaxpeft."""
    cfg = models.config(folder / "model")
    params = hf.load_adapter(hf.load(folder / "model", cfg), folder / "start", cfg)
    held = objective.held(params)
    trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
    # The step overwrites nothing here, so the start needs no copy.
    tx = optim.make(
        {"name": "adamw", "learning_rate": RATE, "max_grad_norm": 1.0},
        {"name": "constant"},
        STEPS,
    )
    step = jax.jit(make_train_step(cfg, tx, objective))
    state, lines = TrainState.create(trainable, tx, jax.random.key(0)), []
    width = max(batch["tokens"].shape[1] for batch in batches)
    for batch in batches:
        wide = {
            name: np.pad(x, ((0, 0), (0, width - x.shape[1])))[None]
            if x.ndim > 1
            else x[None]
            for name, x in batch.items()
        }
        state, metrics = step(state, Frozen(frozen, held), wide)
        lines.append({name: float(x) for name, x in metrics.items()})
    logged = {name: np.array([line[name] for line in lines]) for name in lines[0]}
    return logged, params, tree.combine(state.params, frozen)


def compare(folder, course: Course, objective: Any) -> None:
    """Losses, rewards, log-probabilities and the adapter's change."""
    logged, before, after = here(folder, objective, course.batches)
    assert len(course.batches) == STEPS
    for name, expected in course.logged.items():
        if name not in logged:  # such as logits/chosen, which only TRL reports
            continue
        if name == "rewards/accuracies":  # at first all are equal, but for rounding
            sure = np.abs(course.logged["rewards/margins"]) > 1e-4
            assert sure[1:].any()
            np.testing.assert_array_equal(logged[name][sure], expected[sure])
            continue
        # Rewards and margins pass 0, log-probabilities are far from it.
        apart = np.abs(logged[name] - expected) / np.maximum(np.abs(expected), 1.0)
        if name == "loss":
            apart = np.abs(logged[name] - expected) / np.abs(expected)
        LOG.info("%s: %.1e", name, apart.max())
        assert apart.max() < 1e-3, (name, logged[name], expected)
    assert {"loss", "rewards/margins", "logps/chosen"} <= set(course.logged)
    cfg = models.config(folder / "model")
    end = hf.load_adapter(hf.load(folder / "model", cfg), course.end, cfg)

    def moved(params):
        both = kernel.nodes(before), kernel.nodes(params)
        names = (both[0][n].a.size and n for n in both[0])
        parts = [
            jnp.ravel(getattr(both[1][n], f) - getattr(both[0][n], f))
            for n in names
            for f in ("a", "b")
        ]
        return jnp.concatenate(parts)

    ours, theirs = moved(after), moved(end)
    size = float(jnp.linalg.norm(theirs))
    apart = float(jnp.linalg.norm(ours - theirs)) / size
    LOG.info("the adapter's change: %.1e of %.3f", apart, size)
    assert size > 0.1 and apart < 2e-2


def made(name, continues=False, **keys):
    table = objectives.OBJECTIVES
    given = {"continues": continues} if "continues" in table.parameters(name) else {}
    problems = config.check_call("objective", name, table, keys)
    assert not problems
    return table[name].make(**keys, **given)


@pytest.mark.parametrize(
    "keys",
    [
        {"loss_type": "sigmoid", "sft_weight": 0.5},
        {"loss_type": "hinge"},
        {"loss_type": "ipo"},
        {"loss_type": "robust", "label_smoothing": 0.1},
    ],
    ids=lambda keys: keys["loss_type"],
)
def test_dpo(keys, folder, there):
    theirs = dict(keys)
    if weight := theirs.pop("sft_weight", 0):
        theirs |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, weight]}
    course = there(trl.DPOTrainer, trl.DPOConfig, beta=0.3, **theirs)
    compare(folder, course, made("dpo", continues=True, beta=0.3, **keys))


def test_orpo(folder, there, experimental):
    course = there(*experimental["orpo"], beta=0.3)
    compare(folder, course, made("orpo", beta=0.3))


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo"])
def test_cpo(loss_type, folder, there, experimental):
    keys = {"beta": 0.3, "cpo_alpha": 0.7, "loss_type": loss_type}
    course = there(*experimental["cpo"], **keys)
    compare(folder, course, made("cpo", **keys))


def test_simpo(folder, there, experimental):
    keys = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 0.5}
    course = there(*experimental["cpo"], **keys)
    course.logged.pop("nll_loss")  # 0 where it is not used
    compare(folder, course, made("simpo"))


def test_kto(folder, there, records):
    """Wanted and unwanted answers in turns, the latter weighed more."""
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in records
        for side in ("chosen", "rejected")
    ]
    keys = {"beta": 0.3, "undesirable_weight": 1.3}
    size = {"per_device_train_batch_size": 2 * PAIRS}
    course = there(trl.KTOTrainer, trl.KTOConfig, rows=rows, **keys, **size)
    assert course.logged["kl"].max() > 0.01
    compare(folder, course, made("kto", continues=True, **keys))
