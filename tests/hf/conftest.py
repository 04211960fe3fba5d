"""Small random Llamas in Hugging Face's format, made by transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from jaxpeft import hf, models

TOKENS = np.random.default_rng(0).integers(0, 96, (2, 11))
SETTINGS = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def _write(directory: Path, dtype: str = "float32", shard: str = "1GB", **settings):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SETTINGS, **settings})
    model = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    # transformers starts biases at 0 and norms at 1, which would hide mistakes.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory, max_shard_size=shard)
    return model


@pytest.fixture(scope="session")
def write_model() -> Callable[..., Any]:
    """write_model(directory, dtype, shard, **LlamaConfig fields) -> the torch model."""
    return _write


@pytest.fixture(scope="session")
def logits_here() -> Callable[..., np.ndarray]:
    """logits_here(params, cfg): of the fixed tokens."""
    return lambda params, cfg: np.asarray(
        models.forward(params, jnp.asarray(TOKENS), cfg)
    )


@pytest.fixture(scope="session")
def logits_there() -> Callable[..., np.ndarray]:
    """logits_there(torch model): of the same tokens."""

    def run(model: Any) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(TOKENS)).logits.float().numpy()

    return run


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 model's folder; tests must not write into it."""
    directory = tmp_path_factory.mktemp("base")
    _write(directory)
    return directory


@pytest.fixture(scope="session")
def cfg(base: Path) -> models.ModelConfig:
    """The config of `base`."""
    return models.config(base)


@pytest.fixture(scope="session")
def params(base: Path, cfg: models.ModelConfig) -> dict:
    """The params of `base`."""
    return hf.load(base, cfg)
