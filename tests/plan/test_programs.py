"""The programs of real steps, compiled for TPUs and GPUs that are not here.

Each is a small model's; what holds of it holds of a large one's, whose programs have
the same operations: `scripts/aot_check.py` compiles those. The facts are printed, so
that a change shows as a number (`pytest -s`, or where a test fails).
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from jaxpeft.assembly import configuration
from jaxpeft.devices import topologies
from jaxpeft.errors import InputError
from jaxpeft.plan import compiling
from jaxpeft.plan.facts import facts, which

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_verdicts")]

# No two axes of the model are of one length, so that an array's shape says what it is.
LENGTH, VOCABULARY, SEQUENCES = 512, 8192, 4
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
# In a layer: q, k, v, o, and three of the MLP. The head comes once, the rest for the
# forward and once more for the backward pass.
LAYER = 256 * (256 + 128 + 128 + 256 + 3 * 640)
WEIGHTS = 2 * 2 * LAYER * 2 + 2 * 256 * VOCABULARY
MIB = 2**20
BLAS = 32  # MiB that NVIDIA's library of products works in, however small they are
LORA = {"method": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


class Row(NamedTuple):
    """A step, and the most memory that it may take.

    Attributes:
        target: what it is compiled for.
        settings: keys of the configuration.
        memory: MiB of a device, by its compiler; on GPUs without `BLAS`.
        copied: MiB of whole stacks that are copied. Compilers lay some small ones out
            anew once a step; a copy for each layer is many times this.
        sent: how many times the bytes a device sends of what gathering the weights
            twice takes; 0: it has nobody to send to.
    """

    target: str
    settings: tuple[str, ...]
    memory: float
    copied: float = 0
    sent: float = 0


FULL = ("adapter={method: full}", "optimizer.name=adamw_8bit")
SPLIT = (f"training.batch_size={8 * SEQUENCES}",)
ROWS = {
    "lora fsdp, v5e": Row("v5e-8", SPLIT, 20, 0, 1.4),
    "lora fsdp, h100": Row("h100x8", SPLIT, 45, 0.25, 1.35),
    "nf4, v5e": Row("v5e-1", ("model.quantization=nf4",), 22, 0.01),
    "nf4, h100": Row("h100x1", ("model.quantization=nf4",), 45),
    "full, v5e": Row("v5e-1", FULL, 45, 0.5),
    "full, h100": Row("h100x1", FULL, 75, 2.5),
}


def compile_for(row, folder):
    """What the compiler of a row's target says of its step."""
    target = topologies.parse(row.target)
    try:
        devices = topologies.devices(target)
    except InputError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))
    (folder / "config.json").write_text(json.dumps(MODEL))
    run = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(folder), "dtype": "bfloat16", "remat": "full"},
        "adapter": LORA,
        "data": {
            "train": {"path": "train.json", "format": "alpaca"},
            "max_length": LENGTH,
            "packing": True,
        },
        "optimizer": {"name": "adamw", "learning_rate": 2e-4},
        "training": {"max_steps": 1000, "batch_size": SEQUENCES},
        "mesh": {"data": 1, "fsdp": -1, "tensor": 1},
    }
    path = Path(folder, "run.yaml")
    path.write_text(json.dumps(run))  # which is YAML too
    cfg = configuration.open_config(str(path), list(row.settings))
    return target, compiling.compiled(cfg, target, devices)


@pytest.mark.parametrize("name", ROWS)
def test_what_is_to_be_true_of_a_step(name, tmp_path):
    row = ROWS[name]
    target, found = compile_for(row, tmp_path)
    assert not found.verdict.refused
    program = found.program
    cost = found.estimate
    step = facts(program, length=LENGTH, vocabulary=VOCABULARY)
    assert cost is not None
    head = f"{name}: {found.total / MIB:,.0f} MiB, {cost.seconds * 1e3:,.1f} ms"
    sys.stdout.write("\n".join(("", head, *step.lines(), "")))
    assert set(step.products) == {"bf16"}
    assert step.squares == (), which(program, step.squares[0])
    assert step.logits <= SEQUENCES * LENGTH / 4, which(program, step.float32)
    assert step.filled == 0
    assert step.copied / MIB <= row.copied
    assert step.not_donated == ()
    work = BLAS if target.gpu else 0
    assert found.total / MIB <= row.memory + work
    assert cost.unknown == ()
    # No optimizer state, and no weight more often than a layer needs it.
    whole = WEIGHTS * (target.count - 1) / target.count
    assert 0.9 * whole * bool(row.sent) <= sum(step.sent.values()) <= row.sent * whole
