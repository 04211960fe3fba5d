"""Where things lie, and small random Llamas in torch beside their params here."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpeft import models

# The tests compile hundreds of tiny programs: code of the best quality for each would
# take twice the time of all else. What XLA does before that is as ever.
FAST_COMPILES = "--xla_backend_optimization_level=0"
os.environ.setdefault(
    "XLA_FLAGS", f"{FAST_COMPILES} --xla_llvm_disable_expensive_passes=true"
)

# What the user keeps is neither used nor added to.
os.environ.setdefault("JAXPEFT_CACHE_DIR", "off")

# A deprecation inside a library that results are compared with, or that a sink or a
# test opens, is no failure of ours. In jax, flax, optax, orbax and our own code it is.
REFERENCES = """torch torchao transformers huggingface_hub peft accelerate bitsandbytes
adam_mini apollo_torch came_pytorch galore_torch grokadamw lomo_optim optimi prodigyopt
schedulefree optuna alembic sqlalchemy tensorboard tensorboardX google wandb selenium
coreweave_evaluations opentelemetry trackio gradio_client starlette uvicorn httpx
urllib3""".split()

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,  # transformers' own 0.02 gives logits of almost nothing
    "eos_token_id": None,
    "bos_token_id": None,
}


def pytest_configure(config: pytest.Config) -> None:
    """Lets the references' deprecations pass: a filter's module is where one points."""
    inside = rf"({'|'.join(REFERENCES)})(\.|$)"
    for kind in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"):
        config.addinivalue_line("filterwarnings", f"ignore::{kind}:{inside}")


class Llama(NamedTuple):
    """One model twice: in torch, and as a config and params here, both float32."""

    torch: Any
    cfg: models.ModelConfig
    params: dict[str, Any]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def asset_model() -> Path:
    """The folder of the model that the package ships."""
    return ROOT / "jaxpeft" / "assets" / "tiny-llama"


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """shared(name): a path in ../shared, or a skip where it is not there."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} in ../shared")
        return path

    return find


@pytest.fixture(scope="session")
def make_torch() -> Callable[..., Any]:
    """make_torch(**LlamaConfig fields): a random torch Llama, norms and biases too."""
    import torch
    import transformers

    def make(**settings: Any) -> Any:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**{**SMALL, **settings})
        model = transformers.LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "norm" in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture(scope="session")
def make_llama(make_torch: Callable[..., Any]) -> Callable[..., Llama]:
    """make_llama(**LlamaConfig fields): a random model, there and here."""

    def make(**settings: Any) -> Llama:
        model = make_torch(**settings)
        cfg = models.config(json.loads(model.config.to_json_string(use_diff=False)))
        state = model.state_dict()

        def value(spec: models.ParamSpec) -> jax.Array:
            tensors = [state[name].numpy() for name in spec.hf_names()]
            tensors = [t.T if spec.transposed else t for t in tensors]
            return jnp.asarray(np.stack(tensors) if spec.stacked else tensors[0])

        params = jax.tree.map(value, models.param_specs(cfg), is_leaf=models.is_spec)
        return Llama(model, cfg, params)

    return make


@pytest.fixture(scope="session")
def llama(make_llama: Callable[..., Llama]) -> Llama:
    """The small random model with grouped queries and a head of its own."""
    return make_llama()
