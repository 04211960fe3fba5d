"""NEFTune: uniform noise on the embeddings of a training step (Jain et al., 2023)."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import struct
from jax import Array
from jaxtyping import Float

NOISE = "noise"  # where it stands, beside the embedding that it is added to
# Folded into a step's key: adapters fold in their number, from 0.
APART = 2**31 - 1


@struct.dataclass
class Noise:
    """What is added to the embeddings of a batch while it trains.

    Attributes:
        key: what it is drawn with.
        alpha: how large it is: each entry is drawn from +-alpha / sqrt(seq * hidden).
    """

    key: Array
    alpha: float = struct.field(pytree_node=False)

    def added_to(
        self, x: Float[Array, "batch seq hidden"]
    ) -> Float[Array, "batch seq hidden"]:
        """The embeddings with noise.

        As in transformers, `seq` is the length of the batch's rows, padding included.

        Args:
            x: what the first layer would read.
        """
        most = self.alpha / (x.shape[-2] * x.shape[-1]) ** 0.5
        return x + jax.random.uniform(self.key, x.shape, x.dtype, -most, most)


def beside(embedding: Mapping[str, Any], alpha: float, key: Array) -> dict[str, Any]:
    """The weights of `embed_tokens`, and beside them the noise of one micro-batch.

    Args:
        embedding: the weights of the module.
        alpha: how large the noise is, see `Noise`.
        key: of the micro-batch; adapters may drop by the same.
    """
    return {**embedding, NOISE: Noise(jax.random.fold_in(key, APART), alpha)}


def with_noise(params: Mapping[str, Any], alpha: float, key: Array) -> dict[str, Any]:
    """The params of a model, with noise on what `models.embed` gives.

    Args:
        params: the model's.
        alpha: how large the noise is, see `Noise`.
        key: of the micro-batch; adapters may drop by the same.
    """
    model = params["model"]
    noisy = beside(model["embed_tokens"], alpha, key)
    return {**params, "model": {**model, "embed_tokens": noisy}}
