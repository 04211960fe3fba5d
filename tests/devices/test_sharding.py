"""The mesh and the places of arrays on it, on devices that need not exist."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from jaxpeft import models, optim
from jaxpeft.devices import per_device, sharding
from jaxpeft.errors import InputError


def devices(count):
    return [
        SimpleNamespace(id=i, platform="cpu", process_index=0) for i in range(count)
    ]


def mesh_of(data=1, fsdp=1, tensor=1, context=None):
    axes, sizes = sharding.AXES, (data, fsdp, tensor)
    if context is not None:
        axes, sizes = (*axes, sharding.CONTEXT), (*sizes, context)
    return AbstractMesh(sizes, axes)


SHAPES = {
    "what is left": ({}, (8, 1, 1)),
    "fsdp": ({"fsdp": 4}, (2, 4, 1)),
    "tensor": ({"tensor": 2}, (4, 1, 2)),
    "all given": ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2, 2)),
    "rest to fsdp": ({"data": 1, "fsdp": -1, "tensor": 4}, (1, 2, 4)),
    "context": ({"context": 2, "tensor": 2}, (2, 1, 2, 2)),
    "rest to context": ({"data": 2, "context": -1}, (2, 1, 4, 1)),
    "nothing left to context": ({"data": 8, "context": -1}, (8, 1, 1)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_of_a_mesh(name, monkeypatch):
    sizes, expected = SHAPES[name]
    made = {}
    monkeypatch.setattr(
        sharding, "Mesh", lambda grid, axes, **_: made.update(grid=grid, axes=axes)
    )
    sharding.make_mesh(**sizes, devices=devices(8))
    axes = ("data", "fsdp", "context", "tensor")
    axes = axes if len(expected) == 4 else sharding.AXES
    assert made["grid"].shape == expected and made["axes"] == axes
    assert [d.id for d in made["grid"].flat] == list(range(8))


@pytest.mark.parametrize(
    "sizes", [{"data": 3}, {"fsdp": 3}, {"data": 2, "tensor": 2}, {"tensor": 16}]
)
def test_sizes_that_do_not_fit_are_refused_with_both_numbers(sizes):
    with pytest.raises(InputError) as caught:
        sharding.make_mesh(**sizes, devices=devices(8))
    (found,) = caught.value.problems
    needed = int(np.prod(list(sizes.values())))
    assert found.startswith("mesh: ")
    open_ended = "data" not in sizes  # -1 by default, what is left
    wanted = f"a multiple of {needed}" if open_ended else str(needed)
    assert f"needs {wanted} devices" in found and "there are 8" in found


def test_one_device_is_a_mesh():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    batch = {"tokens": np.arange(12).reshape(1, 3, 4)}
    placed = sharding.put_batch(batch, mesh)
    np.testing.assert_array_equal(placed["tokens"], batch["tokens"])
    assert placed["tokens"].sharding.spec == PartitionSpec(None, ("data", "fsdp"), None)
    whole = sharding.replicated(mesh)
    assert whole.is_fully_replicated


PLACES = {
    "both split": (("layers", "embed", "mlp"), (3, 8, 12), (None, "fsdp", "tensor")),
    "one does not divide": (("layers", "embed", "mlp"), (3, 8, 9), (None, "fsdp")),
    "neither divides": (("embed", "heads"), (7, 9), ()),
    "vocabulary": (("vocab", "embed"), (10, 8), ("tensor", "fsdp")),
    "no axis": ((None, "mlp"), (4, 4), (None, "tensor")),
    "unknown axis": (("rank", "mlp"), (4, 4), (None, "tensor")),
    "nothing": ((), (), ()),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_does_not_divide_is_replicated(name):
    axes, shape, expected = PLACES[name]
    spec = tuple(sharding.named(mesh_of(2, 4, 2), axes, shape).spec)
    padded = expected + (None,) * (len(shape) - len(expected))
    assert spec + (None,) * (len(shape) - len(spec)) == padded


def test_weights_are_split_over_context_as_over_fsdp():
    mesh = mesh_of(1, 2, 2, context=4)
    axes, both = ("layers", "embed", "mlp"), ("fsdp", "context")
    spec = sharding.named(mesh, axes, (3, 16, 12)).spec
    assert tuple(spec) == (None, both, "tensor")
    # What both together do not divide, fsdp may.
    assert tuple(sharding.named(mesh, axes, (3, 6, 12)).spec) == (
        *(None, "fsdp", "tensor"),
    )
    alone = mesh_of(1, 1, 1, context=4)
    assert sharding.is_whole(alone, axes, (3, 6, 12))
    assert not sharding.is_whole(alone, axes, (3, 8, 12))


def test_lengths_must_divide_and_shorter_rows_are_filled_up():
    mesh = mesh_of(context=8)
    sharding.check_length(64, mesh)
    sharding.check_length(61, mesh_of(2, 2))
    with pytest.raises(
        InputError, match="data.max_length: found 100.*8 dev.*96 or 104"
    ):
        sharding.check_length(100, mesh)
    batch = {"tokens": np.ones((2, 3, 13), int), "label": np.ones((2, 3))}
    longer = sharding.filled_up(batch, mesh)
    assert longer["tokens"].shape == (2, 3, 16) and longer["label"].shape == (2, 3)
    assert longer["tokens"].sum() == 2 * 3 * 13 and not longer["tokens"][..., 13:].any()
    assert sharding.filled_up(batch, mesh_of(2, 2))["tokens"].shape == (2, 3, 13)


def test_axes_and_shape_must_agree_in_number():
    with pytest.raises(ValueError):
        sharding.named(mesh_of(), ("embed",), (2, 3))


def test_every_weight_of_a_model_has_its_place(llama):
    mesh, specs = mesh_of(1, 2, 2), models.param_specs(llama.cfg)
    axes = jax.tree.map(lambda s: s.axes, specs, is_leaf=models.is_spec)
    places = sharding.of(mesh, axes, models.shapes(llama.cfg, "float32"))
    layers = places["model"]["layers"]
    assert layers["self_attn"]["q_proj"]["kernel"].spec == PartitionSpec(
        None, "fsdp", "tensor"
    )
    assert layers["mlp"]["down_proj"]["kernel"].spec == PartitionSpec(
        None, "tensor", "fsdp"
    )
    assert places["lm_head"]["kernel"].spec == PartitionSpec("fsdp", None)  # 61 % 2


def test_a_state_of_codes_is_split_like_its_parameter():
    mesh = mesh_of(1, 2, 4)
    shapes = {"whole": (3, 512, 2048), "short": (3, 512, 200), "vector": (3, 8)}
    axes = {
        "whole": ("layers", "embed", "mlp"),
        "short": ("layers", "embed", "mlp"),
        "vector": ("layers", "embed"),
    }
    params = {n: jax.ShapeDtypeStruct(s, "float32") for n, s in shapes.items()}
    placed = {n: sharding.named(mesh, axes[n], s) for n, s in shapes.items()}
    tx = optim.adamw_8bit(1e-3, layout=optim.Layout(stacked=".*"))
    state = jax.eval_shape(tx.init, params)
    found = sharding.of_state(mesh, state, params, placed)
    split, whole = PartitionSpec(None, "fsdp", "tensor"), PartitionSpec()
    for moment in found.leaves["whole"]:
        assert (moment.codes.spec, moment.scales.spec) == (split, split)
    for moment in found.leaves["short"]:  # its blocks are those of the flat layer
        assert (moment.codes.spec, moment.scales.spec) == (split, whole)
    assert found.leaves["vector"].mu.spec == PartitionSpec(None, "fsdp")
    assert found.count.spec == whole


def test_batches_must_divide_with_the_nearest_that_do():
    mesh = mesh_of(2, 4, 2)
    sharding.check_batch(16, mesh, "training.batch_size")
    with pytest.raises(InputError, match="training.batch_size: 20.*8 dev.*16 or 24"):
        sharding.check_batch(20, mesh, "training.batch_size")
    with pytest.raises(InputError, match="such as 8"):
        sharding.check_batch(3, mesh, "training.batch_size")


@pytest.mark.parametrize(
    ("tensor", "heads", "seen"),
    [(2, 8, (4, 1)), (4, 8, (2, 1)), (4, 6, (6, 2)), (1, 8, (8, 2))],
)
def test_each_device_has_whole_heads_and_the_keys_that_they_share(tensor, heads, seen):
    q, k = (jax.ShapeDtypeStruct((4, 3, n, 5), "float32") for n in (heads, 2))
    given = []

    def function(q, k, v, rows, whole):
        given.append((q.shape[:3:2], k.shape[2], v.shape[2], rows.shape, whole.shape))
        return q

    def attended(q, k, rows, whole):
        return per_device.on_each_head(function, (q, k, k), rows, whole)

    rows, whole = (jax.ShapeDtypeStruct(n, "int32") for n in ((4, 3), ()))
    with jax.sharding.use_abstract_mesh(mesh_of(data=2, tensor=tensor)):
        out = jax.eval_shape(attended, q, k, rows, whole)
    assert out.shape == q.shape
    assert given == [((2, seen[0]), seen[1], seen[1], (2, 3), ())]


@pytest.mark.parametrize(
    ("sizes", "heads", "seen"),
    [
        ({"context": 2}, 8, (4, 1)),
        ({"context": 2, "tensor": 2}, 8, (2, 1)),
        ({"context": 8}, 6, (1, 1)),
        ({"data": 2, "context": 4}, 2, (1, 1)),
    ],
)
def test_parts_of_sequences_become_whole_ones_of_some_heads(sizes, heads, seen):
    q, k = (jax.ShapeDtypeStruct((4, 24, n, 5), "float32") for n in (heads, 2))
    past = jax.ShapeDtypeStruct((4, 3, 2, 5), "float32")
    given = []

    def function(q, k, v, rows, whole):
        given.append((q.shape[1:3], k.shape[1:3], v.shape[1:3], rows.shape))
        return q

    def attended(q, k, past, rows):
        return per_device.on_each_head(function, (q, k, k), rows, None, (past, past))

    rows = jax.ShapeDtypeStruct((4, 24), "int32")
    with jax.sharding.use_abstract_mesh(mesh_of(**sizes)):
        out = jax.eval_shape(attended, q, k, past, rows)
    assert out.shape == q.shape
    keys, batch = (24 + 3, seen[1]), 4 // sizes.get("data", 1)
    assert given == [((24, seen[0]), keys, keys, (batch, 24))]
