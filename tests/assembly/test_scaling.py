"""Loss scaling in float16: beside torch's GradScaler, and what a skipped step counts.

The differences are logged: `pytest --log-cli-level INFO`.
"""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers

from jaxpeft import adapters, hf, models, tree
from jaxpeft.assembly import scaling
from jaxpeft.assembly.step import Frozen, TrainState, make_train_step
from jaxpeft.rundir.checkpoint import Checkpoints

LOG = logging.getLogger(__name__)
STEPS, RATE, INTERVAL = 30, 3e-3, 10
# At this step the scale is so large that gradients overflow; after it small again.
BAD, TOO_LARGE, SMALL = 6, 2.0**40, 2.0**15
TOKENS = np.random.default_rng(0).integers(1, 61, (3, 14)).astype(np.int32)
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@pytest.fixture(scope="module", autouse=True)
def often():
    """Scales grow after 10 good steps, so that 30 show it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "INTERVAL", INTERVAL)
        yield


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, make_torch):
    """(folder of the base, folder of an adapter, losses, scales) of torch's run."""
    folder = tmp_path_factory.mktemp("float16")
    make_torch().save_pretrained(folder / "base")
    base = transformers.LlamaForCausalLM.from_pretrained(
        folder / "base", dtype=torch.float16
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(
        base, peft.LoraConfig(**LORA, task_type="CAUSAL_LM", init_lora_weights=False)
    )
    weights = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in weights} == {torch.float32}
    model.save_pretrained(folder / "adapter")
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0)
    scaler = torch.amp.GradScaler("cpu", growth_interval=INTERVAL)
    tokens, losses, scales = torch.from_numpy(TOKENS).long(), [], []
    for number in range(STEPS):
        if number in (BAD, BAD + 1):
            scale = TOO_LARGE if number == BAD else SMALL
            scaler.load_state_dict({**scaler.state_dict(), "scale": scale})
        scales.append(scaler.get_scale())
        with torch.autocast("cpu", dtype=torch.float16):
            loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales[-1] = (scales[-1], scaler.get_scale())
        losses.append(loss.item())
    return folder / "base", folder / "adapter", np.array(losses), scales


class Here:
    """The same run here: its step, and the state before the first one."""

    def __init__(self, base, adapter):
        cfg = models.config(base)
        params = hf.load_adapter(hf.load(base, cfg, dtype="float16"), adapter, cfg)
        self.trainable, frozen = tree.partition(params, adapters.trainable_mask(params))
        tx = optax.adamw(RATE, weight_decay=0.0)
        self._tx, self.frozen = tx, Frozen(frozen)
        self.step = jax.jit(make_train_step(cfg, tx))
        shape = (1, *TOKENS.shape)
        supervised = np.ones(shape, bool)
        supervised[..., -1] = False
        self.batch = {
            "tokens": TOKENS[None],
            "targets": np.roll(TOKENS, -1, axis=1)[None],
            "supervised": supervised,
            "positions": np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape),
        }

    def start(self):
        return TrainState.create(self.trainable, self._tx, jax.random.key(0), True)

    def follow(self, state, steps):
        """(the state after so many steps, the metrics of each)."""
        lines: list[dict[str, float]] = []
        for _ in range(steps):
            state, metrics = self.step(state, self.frozen, self.batch)
            lines.append({name: float(x) for name, x in metrics.items()})
        return state, lines


@pytest.fixture(scope="module")
def here(theirs):
    return Here(*theirs[:2])


def at_scale(state, scale):
    """The state with another scale, after no good step."""
    scaled = scaling.LossScale(jnp.float32(scale), jnp.int32(0))
    return dataclasses.replace(state, loss_scale=scaled)


@pytest.mark.slow
def test_losses_and_scales_are_those_of_torch(theirs, here):
    _, _, losses, scales = theirs
    state, lines, found = here.start(), [], []
    for number in range(STEPS):
        if number in (BAD, BAD + 1):
            before = state.params
            state = at_scale(state, TOO_LARGE if number == BAD else SMALL)
        state, more = here.follow(state, 1)
        lines += more
        found.append((more[0]["loss_scale"], float(state.loss_scale.scale)))
        if number == BAD:
            assert tree.digest(state.params) == tree.digest(before)
            assert not np.isfinite(more[0]["grad_norm"])
    apart = np.abs(np.array([line["loss"] for line in lines]) - losses)
    LOG.info("losses apart by at most %.1e of %.3f", apart.max(), losses[-1])
    assert found == scales
    assert scales[BAD] == (TOO_LARGE, TOO_LARGE / 2) and scales[-1][1] == 4 * SMALL
    assert state.skipped == 1 and not any(line["skipped_in_row"] for line in lines)
    assert losses[-1] < 0.75 * losses[0]
    assert apart.max() < 2e-3 * losses[0]


def test_a_scale_grows_and_falls_as_torch_has_it():
    there, good = torch.tensor([2.0**5]), torch.zeros(1, dtype=torch.int32)
    here = scaling.LossScale(jnp.float32(2.0**5), jnp.int32(0))
    for finite in [*(24 * [True]), False, *(9 * [True]), False, *(3 * [False])]:
        torch._amp_update_scale_(
            there, good, torch.tensor([0.0 if finite else 1.0]), 2.0, 0.5, INTERVAL
        )
        here = scaling.after(here, jnp.bool_(finite))
        assert (float(here.scale), int(here.good)) == (there.item(), good.item())
    least = scaling.after(at_scale_alone(1.0), jnp.bool_(False))
    assert (least.scale, least.good) == (1.0, 0)
    most = scaling.LossScale(jnp.float32(2.0**127), jnp.int32(INTERVAL - 1))
    assert scaling.after(most, jnp.bool_(True)) == (2.0**127, 0)


def at_scale_alone(scale):
    return scaling.LossScale(jnp.float32(scale), jnp.int32(0))


def test_only_what_no_scale_explains_counts_as_not_finite(here):
    """An overflow does not, a loss that is not finite does, and so does one at 1."""
    state, _ = here.follow(at_scale(here.start(), TOO_LARGE), 2)
    assert state.skipped == 2 and state.skipped_in_row == 0
    norm = here.frozen.params["model"]["norm"]
    broken = {**here.frozen.params["model"], "norm": {"scale": norm["scale"] * jnp.inf}}
    frozen = Frozen({**here.frozen.params, "model": broken})
    for in_row in (1, 2):
        state, metrics = here.step(state, frozen, here.batch)
        assert metrics["skipped_in_row"] == in_row
    state, _ = here.follow(state, 1)  # between them an overflow neither adds nor ends
    assert state.skipped_in_row == 2 and state.skipped == 5
    state, _ = here.follow(at_scale(state, 2.0**16), 1)
    assert state.skipped_in_row == 0
    # A gradient that overflows at the smallest scale, though the loss is finite.
    poor = scaling.is_fault(at_scale_alone(scaling.SMALLEST), jnp.float32(1.0))
    assert poor and not scaling.is_fault(at_scale_alone(2.0), jnp.float32(1.0))


@pytest.mark.slow
def test_a_course_goes_on_bit_for_bit_after_an_overflow(here, tmp_path):
    state, _ = here.follow(at_scale(here.start(), TOO_LARGE), 1)
    state, _ = here.follow(at_scale(state, 2.0**15), 4)
    more = {"save_total_limit": None, "fingerprint": {}}
    with Checkpoints(tmp_path, **more) as checkpoints:
        checkpoints.save(5, state, {})
    with Checkpoints(tmp_path, **more) as checkpoints:
        restored, _ = checkpoints.restore(here.start())
    assert (restored.loss_scale.scale, restored.loss_scale.good) == (2.0**15, 4)
    ends = [here.follow(one, 8)[0] for one in (state, restored)]
    assert ends[0].loss_scale.scale == 2.0**16  # it grew on the way
    assert len({tree.digest(one) for one in ends}) == 1


@pytest.mark.slow
def test_micro_batches_give_the_same_gradient(here):
    """Scaled by unlike shares, which leave as they came."""
    found = []
    for parts in (1, 3):
        batch = {
            name: np.asarray(x).reshape(parts, -1, x.shape[-1])
            for name, x in here.batch.items()
        }
        batch["supervised"] = batch["supervised"].copy()
        batch["supervised"].reshape(3, -1)[1, 4:] = False
        found.append(here.step(here.start(), here.frozen, batch)[1])
    for name in ("loss", "grad_norm"):
        one, other = (float(metrics[name]) for metrics in found)
        LOG.info("%s apart by %.1e", name, abs(one / other - 1))
        np.testing.assert_allclose(one, other, rtol=2e-3)
