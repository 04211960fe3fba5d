"""Our models as one NNX module, to be called and composed like any other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax import Array

from jaxpeft import adapters, hf, kernel, models, tree
from jaxpeft.flax.nnx import AdapterConstant
from jaxpeft.models import ModelConfig


class Model(nnx.Module):
    """A decoder-only transformer of ours with its params, adapters included.

    Attributes:
        params: The mapping that the functions of `jaxpeft.models` take, its leaves now
            NNX variables under the same names: `nnx.LoRAParam` where an adapter trains,
            `AdapterConstant` for what else belongs to adapters or quantized weights,
            and `nnx.Param` for all other weights.
        cfg: The model's configuration.
    """

    def __init__(
        self, params: Mapping[str, Any], cfg: ModelConfig, key: Array | None = None
    ):
        """Makes an NNX variable of every leaf of the params.

        Args:
            params: The params mapping, of arrays.
            cfg: The model's configuration.
            key: The key of the adapters' dropout, which `train()` and `eval()` set on
                and off; needed only where one drops.
        """
        kinds = _kinds(params)
        self.params = nnx.data(jax.tree.map(lambda kind, x: kind(x), kinds, params))
        self.cfg = nnx.static(cfg)
        if any(map(kernel.drops, kernel.nodes(params).values())):
            key = jax.random.key(0) if key is None else key
            self.deterministic = False
            self.rngs = nnx.RngStream(key, tag="dropout")

    @classmethod
    def load(
        cls,
        path: str | Path,
        rules: Mapping[str, Any] | None = None,
        key: Array | None = None,
        *,
        dtype: str = "float32",
        quantization: str | None = None,
        adapter: str | Path | None = None,
    ) -> "Model":
        """The model of a folder in Hugging Face's format, or of a hub id.

        Args:
            path: The model's folder or hub id.
            rules: What new adapters are made of, see `adapters.inject`; None: none is
                made.
            key: The key that adapters and their dropout are drawn with; None:
                `jax.random.key(0)`.
            dtype: The dtype of the weights, see `hf.load`.
            quantization: What the layers' kernels are stored in, see `hf.load`.
            adapter: The folder of a PEFT adapter to put in.

        Raises:
            InputError: For what is missing or does not fit.
        """
        directory = hf.resolve(str(path))
        cfg = models.config(directory)
        params = hf.load(directory, cfg, dtype=dtype, quantization=quantization)
        key = jax.random.key(0) if key is None else key
        if rules is not None:
            params = adapters.inject(params, rules, key, models.module_names(cfg))
        if adapter is not None:
            params = hf.load_adapter(params, adapter, cfg)
        return cls(params, cfg, jax.random.fold_in(key, 0))

    def __call__(
        self,
        tokens: Array,
        *,
        positions: Array | None = None,
        segments: Array | None = None,
    ) -> Array:
        """The logits of the next token at every place, see `models.forward`.

        Args:
            tokens: The tokens, (batch, seq) int32.
            positions: Their positions, (batch, seq) int32; None: 0, 1, ...
            segments: Which packed example a token belongs to, (batch, seq) int32 (0:
                padding); None: one example in each row.

        Returns:
            An array (batch, seq, vocab) float32.
        """
        packing = {"positions": positions, "segments": segments}
        return models.forward(self._dropping(), tokens, self.cfg, **packing)

    def hidden_states(
        self,
        tokens: Array,
        *,
        positions: Array | None = None,
        segments: Array | None = None,
    ) -> Array:
        """The normalised last hidden states, for another head.

        Args:
            tokens: The tokens, (batch, seq) int32.
            positions: Their positions, (batch, seq) int32; None: 0, 1, ...
            segments: Which packed example a token belongs to, (batch, seq) int32 (0:
                padding); None: one example in each row.

        Returns:
            An array (batch, seq, hidden).
        """
        packing = {"positions": positions, "segments": segments}
        return models.hidden_states(self._dropping(), tokens, self.cfg, **packing)

    def values(self) -> dict[str, Any]:
        """The params as plain arrays, to merge, generate and save with this library.

        For example, `hf.save_adapter(model.values(), directory, model.cfg)` saves an
        adapter.
        """
        return jax.tree.map(lambda v: v[...], self.params, is_leaf=_is_variable)

    def _dropping(self) -> Mapping[str, Any]:
        values = self.values()
        if getattr(self, "deterministic", True):
            return values
        return kernel.with_dropout(values, self.rngs())


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)


def _kinds(params: Mapping[str, Any]) -> Any:
    """The kind of variable of every leaf, in the structure of `params`."""
    nodes = kernel.nodes(params)
    adapted = any(map(kernel.is_adapter, nodes.values()))
    # Without adapters the mask is true everywhere: then the weights are plain Params.
    mask = jax.tree.leaves(adapters.trainable_mask(params)) if adapted else None
    inside = tuple(f"{name}." for name in nodes)

    def kind(name: str, leaf: Array, trains: bool) -> type[nnx.Variable]:
        if trains:
            return nnx.LoRAParam
        constant = name.startswith(inside) and not name.endswith(".base")
        return AdapterConstant if constant else nnx.Param

    leaves = tree.named_leaves(params)
    kinds = [kind(*named, t) for named, t in zip(leaves, mask or [False] * len(leaves))]
    return jax.tree.unflatten(jax.tree.structure(params), kinds)
