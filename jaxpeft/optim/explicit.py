"""Arrays on meshes whose axes are explicit: computed by the compiler's own placement.

`jax.make_mesh` makes axes of type Explicit, where the type of every array says how it
is split, and an operation of which the result could be split in several ways is an
error. What an optimizer computes is no business of a user's mesh: it is computed as on
axes of type Auto, and only its results are placed, the change like the parameter and
the state where it was.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import Array
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec


def placed(function: Callable[..., Any], like: Callable[[], Any], *args: Any) -> Any:
    """`function(*args)`, placed as `like` says where arrays are on explicit axes.

    Args:
        function: of pytrees of arrays.
        like: returns the arrays, or their `NamedSharding`s, that the results are placed
            like, in their structure; it is called where there is a mesh.
        args: what the function is called with.
    """
    leaves = jax.tree.leaves(args)
    mesh = next(filter(None, map(_mesh, leaves)), None)
    if mesh is None:
        return function(*args)
    places = jax.tree.map(lambda x: _place(x, mesh), like())
    computed = jax.sharding.auto_axes(
        function, axes=mesh.explicit_axes, out_sharding=places
    )
    if not any(isinstance(x, Tracer) for x in leaves):
        # Outside of a program a mesh has no devices but those of the arguments.
        computed = jax.jit(computed, keep_unused=True)
    return computed(*args)


def beside(make: Callable[[Array], Any], p: Array) -> Any:
    """`make(p)`, each of its axes placed like that of `p` which it is one of.

    Args:
        make: from a tensor to what is kept of it, such as its state, a pytree.
        p: the tensor.
    """

    def like() -> Any:
        made = jax.eval_shape(make, jax.ShapeDtypeStruct(p.shape, p.dtype))
        sharding: Any = jax.typeof(p).sharding
        return jax.tree.map(lambda x: _beside(x.shape, p.shape, sharding), made)

    return placed(make, like, p)


def tuned(
    make: Callable[..., optax.GradientTransformation], settings: dict[str, Array]
) -> optax.GradientTransformationExtraArgs:
    """The transformation of settings that are traced, and so have a mesh as well.

    What it computes with them must not have closed over them: it is made once more
    where they are on axes of the same type as the rest.

    Args:
        make: from the settings to the transformation.
        settings: by name, traced scalars.
    """

    def inside(settings: Any, updates: Any, state: Any, params: Any, extra: Any) -> Any:
        tx = optax.with_extra_args_support(make(**settings))
        return tx.update(updates, state, params, **extra)

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        arguments = (settings, updates, state, params, extra)
        return placed(inside, lambda: (params, state), *arguments)

    return optax.GradientTransformationExtraArgs(make(**settings).init, update)


def _mesh(x: Any) -> Any:
    """The mesh with explicit axes that an array is on; None where there is none."""
    mesh = jax.typeof(x).sharding.mesh
    return mesh if mesh.explicit_axes else None


def _place(x: Any, mesh: Any) -> NamedSharding:
    sharding = x if isinstance(x, NamedSharding) else jax.typeof(x).sharding
    return NamedSharding(mesh, sharding.spec)


def _beside(
    shape: tuple[int, ...], tensor: tuple[int, ...], sharding: Any
) -> NamedSharding:
    """Where an array goes whose axes are some of a tensor's, or whose last are blocks.

    Args:
        shape: the array's shape.
        tensor: the tensor's shape.
        sharding: the tensor's, on an abstract mesh.
    """
    spec = [*sharding.spec, *[None] * (len(tensor) - len(sharding.spec))]
    own, axis = [], 0
    for n in shape:
        found = next((i for i in range(axis, len(tensor)) if tensor[i] == n), None)
        own.append(None if found is None else spec[found])
        axis = axis if found is None else found + 1
    if shape and shape[:-1] == tensor[:-1] and shape != tensor:
        names = spec[-1] if isinstance(spec[-1], tuple) else (spec[-1],)
        devices = 1
        for name in names:
            devices *= 1 if name is None else sharding.mesh.shape[name]
        own[-1] = spec[-1] if shape[-1] % devices == 0 else None
    return NamedSharding(sharding.mesh, PartitionSpec(*own))
