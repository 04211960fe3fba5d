"""What a run will need, from shapes and the compiled step alone."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpeft import adapters, hardware, hf, kernel, models, tree
from jaxpeft.assembly import configuration, updates
from jaxpeft.assembly.adapter import gives_a_model, rules_of
from jaxpeft.assembly.base import as_stored, base_shapes, model_config
from jaxpeft.assembly.places import check_batches, make_places
from jaxpeft.assembly.step import Frozen, TrainState
from jaxpeft.config import RunConfig
from jaxpeft.devices import sharding
from jaxpeft.devices.compiled import build
from jaxpeft.errors import InputError
from jaxpeft.models import ModelConfig, stacks
from jaxpeft.optim import OPTIMIZERS
from jaxpeft.plan import flops
from jaxpeft.plan.collectives import Collective, collectives, totals

# Of a run whose length only its data says: no figure depends on it.
STEPS = 1000


@dataclass(frozen=True)
class Plan:
    """The needs of one training step. Sizes are bytes on one device, the fullest.

    Attributes:
        mesh: {axis: devices along it}.
        parameters: how many parameters there are.
        trainable: how many of them train.
        weights: of what is frozen, or of all that trains in full fine-tuning.
        adapters: of what trains beside frozen weights.
        optimizer: of the optimizer's state.
        batch: of its tokens and masks.
        activations: kept from the forward for the backward pass.
        temporaries: everything else that a step needs, gradients too.
        flops: of the matrix products of a step, on all devices together.
        sent: {kind of collective: bytes that a device sends in a step}.
        simulated: whether it was compiled for devices that are not there.
        whole: the weights that no axis of the mesh divides, though one was meant to.
        collectives: the collective operations of the step.
    """

    mesh: dict[str, int]
    parameters: int
    trainable: int
    weights: int
    adapters: int
    optimizer: int
    batch: int
    activations: int
    temporaries: int
    flops: int
    sent: dict[str, float]
    simulated: bool
    whole: tuple[str, ...]
    collectives: list[Collective] = field(default_factory=list, repr=False)

    @property
    def devices(self) -> int:
        """The number of devices that take part."""
        return math.prod(self.mesh.values())

    @property
    def kept(self) -> int:
        """The bytes on a device between two steps."""
        return self.weights + self.adapters + self.optimizer

    @property
    def total(self) -> int:
        """The bytes on a device at the fullest moment of a step."""
        return self.kept + self.batch + self.activations + self.temporaries

    def fits(self, room: float) -> bool:
        """Whether it needs no more than so many bytes of a device."""
        return self.total <= room


def plan(
    cfg: RunConfig, mesh: jax.sharding.Mesh, *, simulated: bool, like: str = "cpu"
) -> Plan:
    """The plan of a run on the devices of a mesh; nothing is read but `config.json`.

    Sequences have `data.max_length` tokens: shorter ones need less.

    Args:
        cfg: the configuration.
        mesh: the devices.
        simulated: whether the mesh's CPU devices stand for accelerators, which compute
            in the dtype that the configuration names, and CPUs do not; what is compiled
            is then float32 throughout, and activations and temporaries are counted at
            that dtype's size.
        like: what they stand for: "gpu", "tpu" or "cpu".

    Raises:
        InputError: as a run would.
    """
    check_batches(cfg, mesh)
    step = _Step(cfg, mesh, widened=simulated and like != "cpu")
    jaxpr, program = step.build()
    memory = program.memory_analysis()
    sends = [_in_its_dtype(one, step.share) for one in collectives(program)]
    activations = step.activations(jaxpr)
    temporaries = max(0, memory.temp_size_in_bytes - activations)
    kept = step.frozen._replace(rates=())
    frozen, trainable = _on_a_device(kept), _on_a_device(step.state.params)
    full = not jax.tree.leaves(kept)
    in_place = gives_a_model(cfg.adapter)
    trains = tree.count(step.state.params)
    return Plan(
        mesh=dict(mesh.shape),
        parameters=step.base + (0 if in_place else trains),
        trainable=trains,
        weights=trainable if full else frozen,
        adapters=0 if full else trainable,
        optimizer=_on_a_device(step.state.opt_state),
        batch=_on_a_device(step.batch),
        activations=round(activations * step.share),
        temporaries=round(temporaries * step.share),
        flops=flops.count(jaxpr),
        sent=totals(sends),
        simulated=simulated,
        whole=tuple(
            name
            for name, spec in tree.named_leaves(
                models.param_specs(step.model), is_leaf=models.is_spec
            )
            if sharding.is_whole(mesh, spec.axes, spec.shape)
        ),
        collectives=sends,
    )


def _in_its_dtype(one: Collective, share: float) -> Collective:
    """At the size of the dtype that is computed in.

    Adapters' gradients are float32 whatever the model is: these stay as they are.
    """
    is_adapter = kernel.ADAPTER_GRADIENT in one.name
    return one if is_adapter else one._replace(nbytes=round(one.nbytes * share))


class Advice(NamedTuple):
    """Changes that make a run smaller.

    Attributes:
        overrides: the changes, texts `section.key=value`.
        plan: the plan with all of them.
    """

    overrides: tuple[str, ...]
    plan: Plan


def advise(
    reopen: Callable[[Sequence[str]], RunConfig],
    first: Plan,
    mesh: jax.sharding.Mesh,
    room: float,
    **how: Any,
) -> Iterator[Advice]:
    """Tries change after change, the cheaper ones first, until the run fits.

    What saves less than 2 % is left out again.

    Args:
        reopen: overrides -> the configuration with them.
        first: its plan without any.
        mesh: the devices.
        room: the bytes of a device that the run may take.
        how: the keywords of `plan`.

    Yields:
        All changes so far, once for each that is kept.
    """
    best, taken = first, ()
    for change in _changes(reopen(()), first.devices):
        if best.fits(room):
            return
        try:
            cfg = reopen((*taken, *change))
            sizes = cfg.mesh.model_dump()
            tried = plan(
                cfg, sharding.make_mesh(**sizes, devices=list(mesh.devices.flat)), **how
            )
        except InputError:
            continue  # it does not go together with the rest
        if tried.total < 0.98 * best.total:
            best, taken = tried, (*taken, *change)
            yield Advice(taken, best)


def _changes(cfg: RunConfig, devices: int) -> Iterator[tuple[str, ...]]:
    if cfg.model.remat != "full":
        yield ("model.remat=full",)
    if cfg.mesh.tensor == 1:
        yield ("mesh.data=1", f"mesh.fsdp={devices}")
    parts = cfg.training.batch_size // devices
    if cfg.training.gradient_accumulation_steps < parts:
        yield (f"training.gradient_accumulation_steps={parts}",)
    full, lighter = gives_a_model(cfg.adapter), OPTIMIZERS[cfg.optimizer.name].lighter
    if lighter is not None and full:
        yield (f"optimizer.name={lighter}",)
    yield (f"data.max_length={cfg.data.max_length // 2}",)
    if full:
        yield ("adapter.method=lora",)


class _Step:
    """The step of a run, its arguments as shapes with their places."""

    def __init__(self, cfg: RunConfig, mesh: jax.sharding.Mesh, widened: bool):
        self.mesh, section = mesh, cfg.model
        directory = hf.resolve(section.path)
        model = model_config(section, directory, hardware.of_mesh(mesh))
        section = as_stored(section, directory, model)
        cfg = cfg.model_copy(update={"model": section})
        if cfg.optimizer.is_auto:
            cfg = cfg.at_rate(1.0)  # memory is the same at any rate
        dtype = section.dtype
        # What is compiled in float32 for want of a device that computes in 16 bits.
        self.share = jnp.dtype(dtype).itemsize / 4 if widened else 1.0
        self.objective = configuration.objective(cfg)
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
        rules, names = rules_of(cfg.adapter), models.module_names(model)
        base = base_shapes(cfg.model, model, dtype)
        params = jax.eval_shape(
            lambda base, key: adapters.inject(base, rules, key, names),
            base,
            jax.random.key(0),
        )
        tx = self.updates.tx
        places = make_places(params, model, self.mesh, tx)
        trainable, frozen = tree.partition(params, places.mask)
        state = jax.eval_shape(
            lambda p: TrainState.create(p, tx, jax.random.key(0)), trainable
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
        return jax.tree.map(
            lambda x: x.update(sharding=sharding.of_batch(self.mesh, len(x.shape))),
            shapes,
        )

    def build(self) -> tuple[Any, Any]:
        """The step as (jaxpr, program)."""
        function = self.updates.train_step(self.model, self.objective)
        arguments = (*self._compiled_as, self.batch)
        return build(function, arguments, carries=True, mesh=self.mesh)

    def activations(self, jaxpr: Any) -> int:
        """Bytes on a device that the layers keep for the backward pass."""
        parts, kept = self.mesh.shape["data"] * self.mesh.shape["fsdp"], 0
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


def _on_a_device(arrays: Any) -> int:
    """The bytes that one device holds of arrays given as shapes with places."""
    total = 0
    for x in jax.tree.leaves(arrays):
        shape = x.sharding.shard_shape(x.shape)
        size = 8 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
        total += math.prod(shape) * size
    return total
