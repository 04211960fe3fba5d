"""The plain form: a kind of adapter that PEFT does not have, on the disk and back."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from jax import Array

from jaxpeft import adapters, hf, kernel, tree
from jaxpeft.adapters.table import Method
from jaxpeft.config import Table
from jaxpeft.errors import InputError
from jaxpeft.hf.peft import form, other_adapters, writable


@struct.dataclass
class Shift:
    """The kernel plus an outer product of two vectors, the first one squashed."""

    base: Array
    left: Array
    right: Array
    scale: Array
    squash: str = struct.field(pytree_node=False, default="tanh")

    TRAINABLE = ("left", "right")

    @property
    def shape(self):
        return self.base.shape

    def dense(self):
        left = getattr(jnp, self.squash)(self.left)
        return kernel.dense(self.base) + self.scale[..., None, None] * (
            left[..., :, None] * self.right[..., None, :]
        )

    def __rmatmul__(self, x):
        return x @ self.dense().astype(x.dtype)

    def axes(self, base):
        *layers, d_in, d_out = base
        return dataclasses.replace(
            self,
            base=kernel.axes_of(self.base, base),
            left=(*layers, d_in),
            right=(*layers, d_out),
            scale=tuple(layers),
        )


@pytest.fixture
def shift(monkeypatch):
    """The forms as they are where a line of the table names the class."""
    table = Table(rows={"shift": Method(lambda base, key: base, node=Shift)})
    monkeypatch.setattr(adapters, "TABLE", table)
    forms = form.plain_forms(other_adapters.FORMS.keys())
    for kind, one in forms.items():
        monkeypatch.setitem(other_adapters.FORMS, kind, one)
        monkeypatch.setitem(other_adapters.TYPES, one.peft_type, kind)
        monkeypatch.setitem(writable.PLACES, kind, writable._linear)


def shifted(params, **changes):
    """The params with a shift of up_proj, and of q_proj in all layers but one."""
    rng, found = np.random.default_rng(5), {}
    for name, value in tree.walk(params):
        if name.endswith(("q_proj.kernel", "up_proj.kernel")):
            layers, d_in, d_out = value.shape
            scale = jnp.full(layers, 0.5)
            found[name] = Shift(
                value,
                jnp.asarray(rng.normal(size=(layers, d_in)), jnp.float32),
                jnp.asarray(rng.normal(size=(layers, d_out)), jnp.float32),
                scale.at[1].set(0) if "q_proj" in name else scale,
                **changes,
            )
    return tree.replace(params, found)


@pytest.mark.slow
def test_it_is_read_as_it_was_written(shift, params, cfg, tmp_path, logits_here):
    trained = shifted(params, squash="sin")
    hf.check_writable(trained, cfg)
    hf.save_adapter(trained, tmp_path / "shift", cfg, base="org/model")
    loaded = hf.load_adapter(params, tmp_path / "shift", cfg)
    expected = logits_here(trained, cfg)
    assert abs(expected - logits_here(params, cfg)).max() > 1e-2
    np.testing.assert_array_equal(logits_here(loaded, cfg), expected)
    content = json.loads((tmp_path / "shift" / "adapter_config.json").read_text())
    assert content["peft_type"] == "JAXPEFT_SHIFT" and content["squash"] == "sin"


def test_two_settings_have_no_place_in_one_folder(shift, params, cfg, tmp_path):
    mixed = shifted(params)
    name, node = next(iter(kernel.nodes(mixed).items()))
    mixed = tree.replace(mixed, {name: dataclasses.replace(node, squash="sin")})
    with pytest.raises(InputError, match="squash is .* in different modules"):
        hf.save_adapter(mixed, tmp_path / "mixed", cfg, base="org/model")


def test_an_adapter_for_another_base_is_refused(shift, params, cfg, tmp_path):
    hf.save_adapter(shifted(params), tmp_path / "shift", cfg, base="org/model")
    name = "model.layers.self_attn.q_proj.kernel"
    other = tree.replace(params, {name: jnp.zeros((3, 16, 32))})
    with pytest.raises(InputError, match="made for another base"):
        hf.load_adapter(other, tmp_path / "shift", cfg)


def test_a_kind_without_a_matrix_is_read_too(shift, monkeypatch, params, cfg, tmp_path):
    def refuse(self):
        raise InputError("a shift has no matrix here")

    trained = shifted(params)
    monkeypatch.setattr(Shift, "dense", refuse)
    hf.save_adapter(trained, tmp_path / "shift", cfg, base="org/model")
    loaded = kernel.nodes(hf.load_adapter(params, tmp_path / "shift", cfg))
    for name, node in kernel.nodes(trained).items():
        for field in ("left", "right", "scale"):
            written, read = (getattr(one, field) for one in (node, loaded[name]))
            np.testing.assert_array_equal(written[0], read[0], err_msg=name)
