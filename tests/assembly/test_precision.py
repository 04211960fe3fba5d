"""What `model.dtype: auto` stands for, and what float16 is refused for."""

import pytest

from jaxpeft.assembly import precision
from jaxpeft.assembly.adapter import check_adapter
from jaxpeft.assembly.base import open_base
from jaxpeft.config import AdapterSection, ModelSection
from jaxpeft.errors import InputError
from jaxpeft.hardware import Target

# Kind of device: what a frozen base, and one that trains, is stored in there.
AUTO = {
    "Tesla T4": ("float16", "float32"),
    "Tesla V100-SXM2-16GB": ("float16", "float32"),
    "Tesla P100-PCIE-16GB": ("float16", "float32"),
    "NVIDIA GeForce RTX 2080 Ti": ("float16", "float32"),
    "Quadro RTX 6000": ("float16", "float32"),
    "NVIDIA A100-SXM4-40GB": ("bfloat16", "bfloat16"),
    "TPU v5 lite": ("bfloat16", "bfloat16"),
    "a card of tomorrow": ("bfloat16", "bfloat16"),
    "cpu": ("float32", "float32"),
}


@pytest.mark.parametrize("kind", AUTO)
def test_auto_takes_what_the_device_has(kind):
    target = Target("cpu" if kind == "cpu" else "gpu", kind, 1)
    found = tuple(precision.dtype_of(target, trains) for trains in (False, True))
    assert found == AUTO[kind]


def test_a_base_opened_here_with_auto_is_float32(asset_model):
    base = open_base(ModelSection(path=str(asset_model), dtype="auto"))
    assert base.dtype == "float32" and not base.scales_loss


@pytest.mark.parametrize("adapter", [{}, {"target_modules": ["mlp"]}], ids=str)
def test_what_trains_is_never_float16_where_products_are(
    adapter, asset_model, monkeypatch
):
    section = ModelSection(path=str(asset_model), dtype="float16")
    full = AdapterSection(method="full", **adapter)
    check_adapter(open_base(section), full)  # on a CPU products are float32
    monkeypatch.setattr(precision, "widens", lambda dtype, target: False)
    base = open_base(section)
    assert base.scales_loss
    check_adapter(base, AdapterSection(modules_to_save=["lm_head"]))
    with pytest.raises(InputError, match="model.dtype: found 'float16' where the base"):
        check_adapter(base, full)
