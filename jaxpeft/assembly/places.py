"""Where the arrays of a run lie on its mesh."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import optax

from jaxpeft import adapters, kernel, models, tree
from jaxpeft.assembly.adapter import gives_a_model
from jaxpeft.assembly.step import TrainState
from jaxpeft.config import RunConfig
from jaxpeft.devices import host_memory, sharding
from jaxpeft.errors import InputError
from jaxpeft.models import ModelConfig

LAYERS = "model.layers."  # what names of the layers' weights begin with


@dataclass(frozen=True)
class Places:
    """The places of a run's arrays on its mesh.

    Attributes:
        params: the place of every parameter, adapters beside the weight that they
            adapt.
        mask: true where a parameter trains, in the structure of `params`.
        state: the places of a `TrainState`.
    """

    params: Any
    mask: Any
    state: TrainState

    @property
    def frozen(self) -> Any:
        """The places of the parameters that do not train."""
        return tree.partition(self.params, self.mask)[1]


def make_places(
    params: Any,
    model: ModelConfig,
    mesh: jax.sharding.Mesh,
    tx: optax.GradientTransformation,
    scales_loss: bool = False,
    offloads: bool = False,
) -> Places:
    """The places of a run's arrays, by the logical axes of its model.

    Args:
        params: the parameters, arrays or shapes, with their adapters.
        model: the hyperparameters of the base.
        mesh: the devices of the run.
        tx: the optimizer, whose states lie beside what they belong to.
        scales_loss: whether its steps scale the loss.
        offloads: whether the optimizer's state lies in the host's memory. Numbers by
            themselves stay on the devices, where they are read at once.
    """
    specs = dict(tree.walk(models.specs_with_head(model)))
    axes = {
        name: kernel.axes_of(
            value,
            # Virtual tokens are no weight of the model, and are whole everywhere.
            specs[name].axes if name in specs else (None,) * len(value.shape),
        )
        for name, value in tree.walk(params)
    }
    placed = sharding.of(mesh, tree.replace(params, axes), params)
    if model.offloads_weights:
        places = dict(tree.walk(placed))
        layers = [(n, x) for n, x in tree.walk(params) if n.startswith(LAYERS)]
        changes = {name: _on_the_host(x, places[name]) for name, x in layers}
        placed = tree.replace(placed, changes)
    mask = adapters.trainable_mask(params)
    trainable, _ = tree.partition(params, mask)
    theirs, _ = tree.partition(placed, mask)
    state = jax.eval_shape(
        lambda p: TrainState.create(p, tx, jax.random.key(0), scales_loss), trainable
    )
    opt_state = sharding.of_state(mesh, state.opt_state, trainable, theirs)
    if offloads:
        opt_state = jax.tree.map(
            lambda x, place: host_memory.placed(place) if x.ndim else place,
            state.opt_state,
            opt_state,
        )
    whole = jax.tree.map(lambda _: sharding.replicated(mesh), state)
    return Places(placed, mask, whole.replace(params=theirs, opt_state=opt_state))


def _on_the_host(value: Any, place: Any) -> Any:
    """The places of one weight of the layers, what lies beneath its adapters moved."""
    if not kernel.is_adapter(value):
        return host_memory.placed_stacks(place, value)
    base = kernel.base_of(value)
    if base is value:
        return place  # it trains itself
    return dataclasses.replace(place, base=_on_the_host(base, place.base))


def check_offload(cfg: RunConfig, mesh: jax.sharding.Mesh) -> None:
    """Checks that the devices reach the host's memory, where something is to lie there.

    Args:
        cfg: the configuration.
        mesh: the devices.

    Raises:
        InputError: where they do not, or where weights that train would lie there.
    """
    offload, method = cfg.model.offload, cfg.adapter.method
    if offload in ("weights", "both") and gives_a_model(cfg.adapter):
        raise InputError(
            f"model.offload: found {offload!r} with adapter.method {method}; weights "
            "that train stay on the devices: set model.offload: activations and "
            "optimizer.offload: true, or use an adapter"
        )
    if offload != "none":
        weights = "" if offload == "activations" else "model.quantization: nf4, "
        remedy = (
            f"set model.offload: none, and {weights}model.remat: full, model.tile: "
            "4096 or shorter sequences in its place"
        )
        host_memory.check(mesh, "model.offload", offload, remedy)
    if cfg.optimizer.offload:
        remedy = (
            "set optimizer.offload: false, and an optimizer whose state is small, such "
            "as adamw_8bit, in its place"
        )
        host_memory.check(mesh, "optimizer.offload", True, remedy)


def check_batches(cfg: RunConfig, mesh: jax.sharding.Mesh) -> None:
    """Checks that the devices of the mesh can share a batch evenly.

    Args:
        cfg: the configuration, which says how large batches are, how they are cut, and
            how long sequences may be.
        mesh: the devices.

    Raises:
        InputError: where they cannot, with the nearest sizes that would do.
    """
    parts = cfg.training.gradient_accumulation_steps
    devices, size = mesh.shape["data"] * mesh.shape["fsdp"], cfg.training.batch_size
    step = devices * parts
    if size % step:
        near = f"{size // step * step} or " if size > step else ""
        raise InputError(
            f"training.batch_size: found {size}; {devices} devices (mesh data x fsdp) "
            f"times {parts} gradient_accumulation_steps do not divide it; use {near}"
            f"{size // step * step + step}"
        )
    if cfg.data.eval_batch_size is not None:
        sharding.check_batch(cfg.data.eval_batch_size, mesh, "data.eval_batch_size")
    sharding.check_length(cfg.data.max_length, mesh)


def check_together(cfg: RunConfig, mesh: jax.sharding.Mesh, together: int) -> None:
    """Checks that no record's examples are parted by accumulation or the mesh.

    Args:
        cfg: the configuration, see `check_batches`, which has passed it.
        mesh: the devices.
        together: how many examples a record makes.

    Raises:
        InputError: where they would be, with the nearest size that does.
    """
    parts = cfg.training.gradient_accumulation_steps
    devices, size = mesh.shape["data"] * mesh.shape["fsdp"], cfg.training.batch_size
    step = devices * parts * together
    if size % step:
        raise InputError(
            f"training.batch_size: found {size}; a record makes {together} rows, which "
            f"{devices} devices (mesh data x fsdp) times {parts} "
            f"gradient_accumulation_steps would part; use {-(-size // step) * step}"
        )
    size = cfg.data.eval_batch_size
    if size is not None and size % (devices * together):
        raise InputError(
            f"data.eval_batch_size: found {size}; a record makes {together} rows, "
            f"which {devices} devices (mesh data x fsdp) would part; use "
            f"{-(-size // (devices * together)) * devices * together}"
        )
