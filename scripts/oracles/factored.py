"""Optimizers with one second moment for many entries, against their references."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import lomo_optim
import torch
from adam_mini import Adam_mini
from came_pytorch import CAME
from optimi import StableAdamW
from transformers.optimization import Adafactor

from jaxpeft.optim.adafactor import adafactor
from jaxpeft.optim.adalomo import adalomo
from jaxpeft.optim.adam_mini import adam_mini
from jaxpeft.optim.came import came
from jaxpeft.optim.lomo import lomo
from jaxpeft.optim.stable_adamw import stable_adamw
from oracles.testbed import Parameters, Row


def factor(params: Parameters, lr: float | None = 1e-3, **settings: Any) -> Adafactor:
    """transformers' Adafactor with the settings of its Trainer."""
    settings = {"scale_parameter": False, "relative_step": False, **settings}
    return Adafactor(params.values(), lr=lr, **settings)


class Fused:
    """lomo_optim's optimizers, which update in hooks of the backward pass, by `step`.

    The hooks are not registered; `grad_func` is what they would call, and it updates
    every parameter that has a gradient.
    """

    def __init__(self, kind: type, params: Parameters, **settings: Any):
        model = SimpleNamespace(named_parameters=params.items, parameters=params.values)
        with (
            mock.patch.object(torch.Tensor, "register_hook"),
            mock.patch.object(torch.Tensor, "cuda", lambda tensor: tensor),
        ):
            self.optimizer = kind(model, **settings)

    def zero_grad(self) -> None:
        """Nothing: an update drops the gradients."""

    def step(self) -> None:
        """One update, counted as `fused_backward` counts it."""
        if hasattr(self.optimizer, "step_num"):
            self.optimizer.step_num += 1
        self.optimizer.grad_func(0)


class Mini:
    """Adam_mini on kernels the way torch has them, (out, in), under names it knows.

    names: from a parameter's name to what the reference is told. Those in `transposed`
    are shown to it with their axes exchanged.
    """

    def __init__(
        self, params: Parameters, names: dict[str, str], transposed: set[str], **kw: Any
    ):
        self.params, self.transposed = params, transposed
        self.shown = {
            name: torch.nn.Parameter(self.turned(name, p.detach()).clone())
            for name, p in params.items()
        }
        named = [(names[name], p) for name, p in self.shown.items()]
        self.optimizer = Adam_mini(named, verbose=False, **kw)

    def turned(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """`x` as the other side has it."""
        return x.T.contiguous() if name in self.transposed else x

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for p in self.params.values():
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update of the shown parameters, brought back to the others."""
        for name, p in self.params.items():
            assert p.grad is not None
            self.shown[name].grad = self.turned(name, p.grad)
        self.optimizer.step()
        for name, p in self.params.items():
            p.copy_(self.turned(name, self.shown[name]))


def mini_blocks(params: Parameters) -> Mini:
    """Columns, heads of 16 columns with 96 entries each, and single blocks."""
    names = {
        "layer0.bias": "a.bias",
        "layer0.kernel": "a.mlp.weight",
        "layer1.bias": "b.bias",
        "layer1.kernel": "b.q_proj.weight",
        "layer2.bias": "c.plain",
        "layer2.kernel": "c.other",
    }
    turned = {"layer0.kernel", "layer1.kernel"}
    return Mini(params, names, turned, lr=1e-3, dim=96, n_heads=6)


def mini_rows(params: Parameters) -> Mini:
    """Every kernel as an embedding, a token a row; with weight decay."""
    names = {n: n if "bias" in n else f"{n}.embed" for n in params}
    return Mini(params, names, set(), lr=1e-3, weight_decay=0.1)


MINI = {
    "full": r"layer[01]\.bias",
    "rows": "none",
    "heads": r"layer1\.kernel",
    "columns": r"layer0\.kernel",
    "head_dim": 16,
}

# With large constant steps the loss falls until rounding decides the gradient's sign:
# there a closed loop leaves itself too, by 1e-2 if its start is off by 1e-7. The modes
# with such steps run in an open loop.
RELATIVE = {"scale_parameter": True, "relative_step": True}
FIRST = {"beta1": 0.9, "weight_decay": 0.1}

ROWS = [
    Row(
        "adafactor",
        "transformers Adafactor",
        lambda: adafactor(1e-3),
        lambda p: factor(p),
        bound=2e-5,
        loop="open",
    ),
    # Without momentum a small gradient that a rounding turns takes a whole step back.
    Row(
        "adafactor, beta1",
        "transformers Adafactor",
        lambda: adafactor(1e-4, beta1=0.9),
        lambda p: factor(p, 1e-4, beta1=0.9),
        bound=2e-5,
    ),
    Row(
        "adafactor, beta1, decay",
        "transformers Adafactor",
        lambda: adafactor(1e-3, **FIRST),
        lambda p: factor(p, **FIRST),
        bound=2e-5,
        loop="open",
    ),
    Row(
        "adafactor, scale_parameter",
        "transformers Adafactor",
        lambda: adafactor(1e-2, scale_parameter=True, clip_threshold=0.5, **FIRST),
        lambda p: factor(p, 1e-2, scale_parameter=True, clip_threshold=0.5, **FIRST),
        bound=2e-5,
        loop="open",
    ),
    Row(
        "adafactor, relative_step",
        "transformers Adafactor",
        lambda: adafactor(**RELATIVE),
        lambda p: factor(p, None, **RELATIVE),
        bound=2e-5,
        loop="open",
    ),
    Row(
        "adafactor, warmup_init",
        "transformers Adafactor",
        lambda: adafactor(warmup_init=True, weight_decay=0.1, **RELATIVE),
        lambda p: factor(p, None, warmup_init=True, weight_decay=0.1, **RELATIVE),
        bound=2e-5,
    ),
    Row(
        "lomo",
        "lomo_optim.Lomo",
        lambda: lomo(0.1, clip_value=1e-3, weight_decay=0.01),
        lambda p: Fused(
            lomo_optim.Lomo, p, lr=0.1, clip_grad_value=1e-3, weight_decay=0.01
        ),
        bound=1e-4,
    ),
    Row(
        "adalomo",
        "lomo_optim.AdaLomo",
        lambda: adalomo(1e-3, weight_decay=0.1),
        lambda p: Fused(
            lomo_optim.AdaLomo, p, lr=1e-3, weight_decay=0.1, loss_scale=None
        ),
        bound=1e-4,
        loop="open",
    ),
    Row(
        "adalomo",
        "lomo_optim.AdaLomo",
        lambda: adalomo(1e-3, weight_decay=0.1),
        lambda p: Fused(
            lomo_optim.AdaLomo, p, lr=1e-3, weight_decay=0.1, loss_scale=None
        ),
        bound=1e-4,
        measure="rms",
    ),
    Row(
        "came",
        "came_pytorch.CAME",
        lambda: came(2e-4, weight_decay=0.1),
        lambda p: CAME(p.values(), lr=2e-4, weight_decay=0.1),
        bound=5e-5,
    ),
    Row(
        "adam_mini, columns and heads",
        "adam_mini.Adam_mini",
        lambda: adam_mini(1e-3, **MINI),
        mini_blocks,
        bound=5e-5,
    ),
    Row(
        "adam_mini, rows",
        "adam_mini.Adam_mini",
        lambda: adam_mini(
            1e-3,
            weight_decay=0.1,
            mask=lambda tree: {name: "bias" not in name for name in tree},
            rows=r".*\.kernel",
        ),
        mini_rows,
        bound=5e-5,
    ),
    Row(
        "stable_adamw",
        "optimi.StableAdamW",
        lambda: stable_adamw(3e-4),
        lambda p: StableAdamW(p.values(), lr=3e-4),
        bound=5e-5,
    ),
    Row(
        "stable_adamw, decouple_lr",
        "optimi.StableAdamW",
        lambda: stable_adamw(1e-3, weight_decay=1e-4, decouple_lr=True),
        lambda p: StableAdamW(p.values(), lr=1e-3, weight_decay=1e-4, decouple_lr=True),
        bound=5e-5,
        loop="open",
    ),
]
