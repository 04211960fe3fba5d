"""A training step that updates each layer inside the backward pass.

The gradients of the stacked layers never exist all at once: a layer's gradient lives
until that layer is updated (LOMO; Lv et al., 2023). What remains in memory beside the
parameters and the optimizer's state is the input of every layer and one layer's work.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxpeft import models
from jaxpeft.assembly.step import (
    SFT,
    Batch,
    Frozen,
    Metrics,
    TrainState,
    TrainStep,
)
from jaxpeft.devices import host_memory
from jaxpeft.models import ModelConfig, noise
from jaxpeft.objectives import Objective
from jaxpeft.optim.rule import Context, Leafwise, Place, Tensor


class _Forward(NamedTuple):
    """A forward pass, and how to go back through its two ends.

    Attributes:
        value: () float32, the mean loss.
        figures: its weight and metrics.
        inputs: (layers, batch, seq, hidden), what each layer read; with offloaded
            activations in the host's memory.
        block: one layer: (its input, its weights, its number) -> its output.
        top: the gradients of what stands above the layers.
        dlast: the gradient of the last layer's output, (batch, seq, hidden).
        bottom: the gradient of the first layer's input -> that of the embedding, to
            which a tied head adds its own.
    """

    value: Array
    figures: Metrics
    inputs: Array
    block: Callable[[Array, Any, Array], Array]
    top: dict[str, Any]
    dlast: Array
    bottom: Callable[[Array], Any]


def make_fused_train_step(
    cfg: ModelConfig,
    leafwise: Leafwise,
    max_grad_norm: float | None = None,
    objective: Objective = SFT,
) -> TrainStep:
    """The function (state, frozen, batch) -> (state, metrics), for full fine-tuning.

    It computes what `step.make_train_step` does without accumulation. Batch leaves are
    (1, batch, seq), and `frozen` holds nothing. With `max_grad_norm` the backward pass
    runs twice, first for the norm alone. A step whose loss or norm is not finite
    changes nothing; without `max_grad_norm` the layers above the first gradient that is
    not finite are already updated by then.

    Args:
        cfg: the model's hyperparameters.
        leafwise: the optimizer's rule for one tensor.
        max_grad_norm: the global norm that gradients are clipped to; None: they are
            not.
        objective: reads the last hidden states alone (`from_hidden`).
    """

    def train_step(
        state: TrainState, frozen: Frozen, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        batch = {**batch, **objective.of_step(batch)}
        micro = {name: leaf[0] for name, leaf in batch.items()}
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 0)
        run = _forward(state.params, micro, cfg, objective, key)
        factor, finite = jnp.ones((), jnp.float32), jnp.isfinite(run.value)
        backward = _Backward(run, state, leafwise)
        if max_grad_norm is not None:
            norm = jnp.sqrt(backward.sum_of_squares())
            factor = jnp.where(norm < max_grad_norm, 1.0, max_grad_norm / norm)
            finite &= jnp.isfinite(norm)
        params, leaves, square, moved, finite = backward.update(factor, finite)
        norms = {"grad_norm": jnp.sqrt(square), "update_norm": jnp.sqrt(moved)}
        return _next_state(state, backward.common, params, leaves, run, norms, finite)

    return train_step


def _forward(
    params: Any, micro: Batch, cfg: ModelConfig, objective: Objective, key: Array
) -> _Forward:
    weights, tied = params["model"], "lm_head" not in params
    block = models.make_block(cfg, micro["positions"], micro.get("segments"))

    def embed(embedding: Any) -> Array:
        if objective.embedding_noise is not None:
            embedding = noise.beside(embedding, objective.embedding_noise, key)
        return models.embed(embedding, micro["tokens"], micro["positions"], cfg)

    x, embed_back = jax.vjp(embed, weights["embed_tokens"])

    def layer(x: Array, layer: tuple[Any, Array]) -> tuple[Array, Array]:
        return block(x, *layer), host_memory.sent(x) if offloads else x

    offloads = cfg.offloads_activations
    numbered = weights["layers"], jnp.arange(cfg.num_hidden_layers)
    last, inputs = jax.lax.scan(layer, x, numbered)
    assert objective.from_hidden is not None  # as `updates` has seen to
    of_hidden = objective.from_hidden

    def loss_of(last: Array, norm: Any, head: Array) -> tuple[Array, Any]:
        loss = of_hidden(models.norm(last, norm, cfg), head, micro)
        divisor = jnp.where(loss.weight > 0, loss.weight, 1.0)
        means = {name: x / n for name, (x, n) in loss.metrics.items()}
        return loss.total / divisor, {**means, "weight": loss.weight}

    value, back, figures = jax.vjp(
        loss_of, last, weights["norm"], models.head(params, cfg), has_aux=True
    )
    dlast, dnorm, dhead = back(jnp.ones((), jnp.float32))
    if isinstance(dhead, models.Logits):
        dhead = dhead.kernel
    top = {"norm": dnorm} if tied else {"norm": dnorm, "lm_head": {"kernel": dhead}}

    def bottom(dx: Array) -> Any:
        (grads,) = embed_back(dx)
        if tied:
            grads = {**grads, "embedding": grads["embedding"] + dhead.T}
        return grads

    return _Forward(value, figures, inputs, block, top, dlast, bottom)


class _Backward:
    """The way back through a forward pass, for the norm and to update."""

    def __init__(self, run: _Forward, state: TrainState, leafwise: Leafwise):
        self.run, self.leafwise = run, leafwise
        self.common = leafwise.begin(state.opt_state, {"value": run.value})
        treedef = jax.tree.structure(state.params)
        tensors = treedef.unflatten(leafwise.tensors(state.params))
        # Tied or not, what stands beside the layers is updated as one mapping.
        self.tensors, self.params, self.states = (
            _parts(x) for x in (tensors, state.params, state.opt_state.leaves)
        )
        self.depth = run.inputs.shape[0]

    def sum_of_squares(self) -> Array:
        """The squared norm of the whole gradient, () float32."""
        layers = self.params["layers"]

        def body(i: Array, carry: Any) -> Any:
            dh, total = carry
            j = self.depth - 1 - i
            dh, grads = self._layer_back(j, _at(layers, j), dh)
            return dh, total + _squares(grads)

        start = (self.run.dlast, _squares(self.run.top))
        dh, total = jax.lax.fori_loop(0, self.depth, body, start)
        return total + _squares(self.run.bottom(dh))

    def update(
        self, factor: Array, finite: Array
    ) -> tuple[Any, Any, Array, Array, Array]:
        """The parameters and states after an update, from the loss down.

        A layer's weights are read for the next turn only after the stack has been
        written: reading first would make XLA keep a copy of it.

        Args:
            factor: () float32, by which all gradients are multiplied.
            finite: () bool, whether all was finite so far.

        Returns:
            (parameters, states, the squared norm of the gradient, that of what is added
                to the parameters, whether all was finite).
        """
        depth, top = self.depth, self.run.top
        square = _squares(top)
        finite &= jnp.isfinite(square)
        new_params, new_states, moved = self._updated(
            {name: self.tensors[name] for name in top},
            top,
            self.params,
            self.states,
            factor,
            finite,
        )

        def body(i: Array, carry: Any) -> Any:
            layers, states, weights, dh, square, moved, finite = carry
            j = depth - 1 - i
            dh, grads = self._layer_back(j, weights, dh)
            square += _squares(grads)
            finite &= jnp.isfinite(square)
            weights, state, added = self._updated(
                self.tensors["layers"],
                grads,
                weights,
                _at(states, j),
                factor,
                finite,
                j,
            )
            layers, states = _put(layers, weights, j), _put(states, state, j)
            weights = _at(layers, jnp.maximum(j - 1, 0))
            return layers, states, weights, dh, square, moved + added, finite

        layers = self.params["layers"]
        first = _at(layers, depth - 1)
        start = (layers, self.states["layers"], first, self.run.dlast)
        layers, states, _, dh, square, moved, finite = jax.lax.fori_loop(
            0, depth, body, (*start, square, moved, finite)
        )
        bottom = {"embed_tokens": self.run.bottom(dh)}
        square += _squares(bottom)
        finite &= jnp.isfinite(square)
        params, end, added = self._updated(
            {"embed_tokens": self.tensors["embed_tokens"]},
            bottom,
            self.params,
            self.states,
            factor,
            finite,
        )
        params = {**new_params, **params, "layers": layers}
        states = {**new_states, **end, "layers": states}
        return _whole(params), _whole(states), square, moved + added, finite

    def _layer_back(self, j: Array, weights: Any, dh: Array) -> tuple[Array, Any]:
        """Gradients of a layer's input and weights; its forward pass runs again."""

        def forward(x: Array, weights: Any) -> Array:
            return self.run.block(x, weights, j)

        x = host_memory.brought(_at(self.run.inputs, j))
        _, back = jax.vjp(forward, x, weights)
        return back(dh)

    def _updated(
        self,
        tensors: Any,
        grads: Any,
        params: Any,
        states: Any,
        factor: Array,
        finite: Array,
        layer: Array | int = 0,
    ) -> tuple[Any, Any, Array]:
        """The tensors that `tensors` names, updated.

        Returns:
            (new parameters, new states, squared norm of what was added).
        """
        settings, treedef = jax.tree.flatten(tensors)
        params = {name: params[name] for name in tensors}
        states = {name: states[name] for name in tensors}
        columns = (treedef.flatten_up_to(x) for x in (grads, params, states))
        done = [
            self._tensor(tensor, g * factor.astype(g.dtype), p, state, finite, layer)
            for tensor, g, p, state in zip(settings, *columns, strict=True)
        ]
        new = [treedef.unflatten([row[i] for row in done]) for i in range(2)]
        return new[0], new[1], sum((row[2] for row in done), jnp.zeros(()))

    def _tensor(
        self,
        tensor: Tensor,
        g: Array,
        p: Array,
        state: Any,
        finite: Array,
        layer: Array | int,
    ) -> tuple[Array, Any, Array]:
        context: Context = self.leafwise.context(self.common, tensor)
        context = context._replace(
            place=Place(tensor.place.name), index=tensor.index + layer
        )
        before = host_memory.brought(state)
        change, new = self.leafwise.change(g, before, p, context)
        moved = (p + change).astype(p.dtype)
        moved, new = jax.tree.map(
            lambda a, b: jnp.where(finite, a, b), (moved, new), (p, before)
        )
        return (
            moved,
            host_memory.like(new, state),
            jnp.where(finite, _squares(change), 0.0),
        )


def _next_state(
    state: TrainState,
    common: Context,
    params: Any,
    leaves: Any,
    run: _Forward,
    norms: Metrics,
    finite: Array,
) -> tuple[TrainState, Metrics]:
    old = state.opt_state
    count = jnp.where(finite, common.t, old.count)
    shared = jax.tree.map(
        lambda new, kept: jnp.where(finite, new, kept), common.shared, old.shared
    )
    skipped = 1 - finite.astype(jnp.int32)
    in_row = (state.skipped_in_row + 1) * skipped
    new_state = dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=old._replace(count=count, shared=shared, leaves=leaves),
        skipped=state.skipped + skipped,
        skipped_in_row=in_row,
    )
    return new_state, {
        "loss": run.value,
        **norms,
        **run.figures,
        "skipped_in_row": in_row,
    }


def _parts(tree: Any) -> dict[str, Any]:
    """The parts of a params mapping, side by side."""
    return {
        **tree["model"],
        **({"lm_head": tree["lm_head"]} if "lm_head" in tree else {}),
    }


def _whole(parts: dict[str, Any]) -> dict[str, Any]:
    """Undoes `_parts`."""
    model = {name: part for name, part in parts.items() if name != "lm_head"}
    head = {"lm_head": parts["lm_head"]} if "lm_head" in parts else {}
    return {"model": model, **head}


def _at(tree: Any, j: Array | int) -> Any:
    return jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, j, keepdims=False), tree
    )


def _put(tree: Any, part: Any, j: Array) -> Any:
    return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, j, 0), tree, part
    )


def _squares(tree: Any) -> Array:
    return sum(
        (jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)),
        jnp.zeros((), jnp.float32),
    )
