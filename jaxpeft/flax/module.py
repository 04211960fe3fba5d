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

    params: the mapping that the functions of `jaxpeft.models` take, its leaves now
    NNX variables under the same names: `nnx.LoRAParam` where an adapter trains,
    `AdapterConstant` for what else belongs to adapters or quantized weights, and
    `nnx.Param` for all other weights. cfg: the model's configuration.
    """

    def __init__(
        self, params: Mapping[str, Any], cfg: ModelConfig, key: Array | None = None
    ):
        """key: for the adapters' dropout, which `train()` and `eval()` set on and off;
        needed only where one drops."""
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

        rules, key: see `adapters.inject`; None: no new adapter. adapter: the folder of
        a PEFT adapter to put in. dtype, quantization: see `hf.load`. Raises InputError
        for what is missing or does not fit.
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
        """Logits (batch, seq, vocab) float32 of tokens, see `models.forward`."""
        places = {"positions": positions, "segments": segments}
        return models.forward(self._dropping(), tokens, self.cfg, **places)

    def hidden_states(
        self,
        tokens: Array,
        *,
        positions: Array | None = None,
        segments: Array | None = None,
    ) -> Array:
        """The normalised last hidden states (batch, seq, hidden): for another head."""
        places = {"positions": positions, "segments": segments}
        return models.hidden_states(self._dropping(), tokens, self.cfg, **places)

    def values(self) -> dict[str, Any]:
        """The params as plain arrays, for the functions of this library: merging,
        generating, `hf.save_adapter(model.values(), directory, model.cfg)`."""
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
