"""The very step of a run, put together from shapes alone."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from jaxpeft import adapters, hardware, hf, models, tree
from jaxpeft.assembly import configuration, heads, precision, updates
from jaxpeft.assembly.adapter import gives_a_model, rules_for
from jaxpeft.assembly.base import as_stored, base_shapes, model_config
from jaxpeft.assembly.places import check_offload, make_places
from jaxpeft.assembly.step import Frozen, TrainState
from jaxpeft.config import RunConfig
from jaxpeft.devices import host_memory, sharding
from jaxpeft.devices.compiled import build, lower
from jaxpeft.models import ModelConfig, stacks, stored
from jaxpeft.plan import flops

# Of a run whose length only its data says: no figure depends on it.
STEPS = 1000


class Step:
    """The step of a run, its arguments as shapes with their places.

    Args:
        cfg: the configuration.
        mesh: the devices, here or not.
        widened: whether it is compiled in float32 for devices that compute in 16 bits.
    """

    def __init__(self, cfg: RunConfig, mesh: jax.sharding.Mesh, widened: bool):
        check_offload(cfg, mesh)
        target = hardware.of_mesh(mesh)
        cfg = precision.settled(cfg, None if widened else target)
        self.mesh, section, self._adapter = mesh, cfg.model, cfg.adapter
        directory = hf.resolve(section.path, weights=False)
        model = model_config(section, directory, target)
        if stored.quantization(model.hf) is not None:
            directory = hf.resolve(section.path)  # its weights say what stays whole
        section = as_stored(section, directory, model)
        cfg = cfg.model_copy(update={"model": section})
        if cfg.optimizer.is_auto:
            cfg = cfg.at_rate(1.0)  # memory is the same at any rate
        dtype = section.dtype
        # What is compiled in float32 for want of a device that computes in 16 bits.
        self.share = jnp.dtype(dtype).itemsize / 4 if widened else 1.0
        cfg = configuration.settled(cfg)
        self.objective = configuration.objective(cfg)
        model = heads.fitted_config(model, self.objective.head)
        self.updates = updates.updates(cfg, cfg.training.max_steps or STEPS)
        self.state, self.frozen, self.base = self._arrays(cfg, model, dtype)
        self.model, self._compiled_as = model, (self.state, self.frozen)
        if widened:
            self.model = dataclasses.replace(model, activation_dtype=None)
            self._compiled_as = self._arrays(cfg, self.model, "float32")[:2]
        parts = cfg.training.gradient_accumulation_steps
        size = (parts, cfg.training.batch_size // parts, cfg.data.max_length)
        self.batch = self._batch(size, cfg.data.packing)

    def _arrays(self, cfg: RunConfig, model: ModelConfig, dtype: str) -> tuple:
        """The state and the frozen parameters as shapes.

        Returns:
            (state, frozen, how many parameters the base has).
        """
        rules, names = rules_for(cfg.adapter, model), models.module_names(model)
        target = hardware.of_mesh(self.mesh)
        base = base_shapes(cfg.model, model, dtype, target)
        params = jax.eval_shape(
            lambda base, key: adapters.inject(base, rules, key, names),
            base,
            jax.random.key(0),
        )
        tx = self.updates.tx
        scales = precision.scales_loss(model, dtype)
        if scales:
            precision.check_trained(params)
        offloads = cfg.optimizer.offload
        places = make_places(params, model, self.mesh, tx, scales, offloads)
        trainable, frozen = tree.partition(params, places.mask)
        state = jax.eval_shape(
            lambda p: TrainState.create(p, tx, jax.random.key(0), scales), trainable
        )
        return (
            _placed(state, places.state),
            Frozen(_placed(frozen, places.frozen), self._held(params), self._rates()),
            tree.count(models.shapes(model, dtype)),
        )

    def _held(self, params: Any) -> Any:
        """The shapes of what the objective keeps; whole everywhere at the worst."""
        whole = sharding.replicated(self.mesh)
        held = jax.eval_shape(self.objective.held, params)
        return jax.tree.map(lambda x: x.update(sharding=whole), held)

    def _rates(self) -> Any:
        whole = sharding.replicated(self.mesh)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
            self.updates.rates,
        )

    def _batch(self, size: tuple[int, int, int], packing: bool) -> dict[str, Any]:
        shapes = self.objective.batch_shapes(size, packing)
        places = {
            has: sharding.of_batch(self.mesh, len(size), has) for has in (True, False)
        }
        return jax.tree.map(
            lambda x: x.update(sharding=places[len(x.shape) == len(size)]), shapes
        )

    def build(self) -> tuple[Any, Any]:
        """The step as (jaxpr, program)."""
        function = self.updates.train_step(self.model, self.objective)
        arguments = (*self._compiled_as, self.batch)
        return build(function, arguments, carries=True, mesh=self.mesh)

    def lower(self) -> tuple[Any, Any]:
        """The step as (jaxpr, what its compiler takes)."""
        function = self.updates.train_step(self.model, self.objective)
        arguments = (*self._compiled_as, self.batch)
        return lower(function, arguments, carries=True, mesh=self.mesh)

    def counted(self) -> dict[str, int]:
        """How many parameters there are: {"parameters": n, "trainable": n}."""
        trains = tree.count(self.state.params)
        beside = 0 if gives_a_model(self._adapter) else trains
        return {"parameters": self.base + beside, "trainable": trains}

    def per_token(self) -> int:
        """The floating-point operations of training on a token, as `flops` has it."""
        counted, cfg = self.counted(), self.model
        embedding = 0 if cfg.tie_word_embeddings else cfg.vocab_size * cfg.hidden_size
        return flops.per_token(counted["parameters"], counted["trainable"], embedding)

    def kept(self) -> dict[str, int]:
        """The bytes on a device of what a step is given, by kind.

        Returns:
            {"weights", "adapters", "optimizer", "batch"}; in full fine-tuning the
            weights are what trains, and there are no adapters.
        """
        kept = self.frozen._replace(rates=())
        frozen, trainable = on_a_device(kept), on_a_device(self.state.params)
        full = not jax.tree.leaves(kept.params)
        return {
            "weights": frozen + trainable if full else frozen,
            "adapters": 0 if full else trainable,
            "optimizer": on_a_device(self.state.opt_state),
            "batch": on_a_device(self.batch),
        }

    def on_the_host(self) -> int:
        """The bytes of what a step is given in the host's memory, for each device."""
        return on_a_device((self.frozen.params, self.state), of_host=True)

    def whole(self) -> tuple[str, ...]:
        """The weights that no axis of the mesh divides, though one was meant to."""
        specs = tree.named_leaves(
            models.param_specs(self.model), is_leaf=models.is_spec
        )
        return tuple(
            name
            for name, spec in specs
            if sharding.is_whole(self.mesh, spec.axes, spec.shape)
        )

    def activations(self, jaxpr: Any) -> int:
        """Bytes on a device that the layers keep for the backward pass."""
        axes = (*sharding.BATCH, sharding.CONTEXT)
        parts, kept = sharding.parts_of(self.mesh.shape, axes), 0
        layers = tree.combine(self.state.params, self.frozen.params)["model"]["layers"]
        # Those of the forward pass come first.
        forward = stacks.lengths(layers, self.model.num_hidden_layers)
        for scan in _scans(jaxpr.jaxpr):
            (body,) = flops.inner_jaxprs(scan)
            # What is carried leaves as it is; the rest is stacked, one a turn.
            stacked = [
                whole
                for whole, one in zip(scan.outvars, body.outvars, strict=True)
                if whole.aval.shape != one.aval.shape
            ]
            if not forward or scan.params["length"] != forward[0]:
                continue
            if not stacked and len(forward) == 1:
                continue
            kept += tree.nbytes([x.aval for x in stacked])
            del forward[0]
        return kept // parts


def _scans(jaxpr: Any) -> Iterator[Any]:
    """Every scan in a jaxpr, in the order that they run."""
    for equation in jaxpr.eqns:
        for inner in flops.inner_jaxprs(equation):
            yield from _scans(inner)
        if equation.primitive.name == "scan":
            yield equation


def _placed(shapes: Any, places: Any) -> Any:
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        places,
    )


def on_a_device(arrays: Any, of_host: bool = False) -> int:
    """The bytes in one device's own memory of arrays given as shapes with places.

    Args:
        arrays: a tree of them.
        of_host: whether what lies in the memory of its host counts in place of that.
    """
    total = 0
    for x in jax.tree.leaves(arrays):
        if (x.sharding.memory_kind == host_memory.KIND) != of_host:
            continue
        shape = x.sharding.shard_shape(x.shape)
        size = 8 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
        total += math.prod(shape) * size
    return total
