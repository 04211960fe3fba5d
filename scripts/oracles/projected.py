"""Optimizers of matrices, and Prodigy, against their references.

Kernels are (in, out) here and (out, in) in torch, so the references get the transpose,
a view of the same numbers. APOLLO's and GaLore's projections cannot be drawn alike on
both sides: ours take over those that the reference drew, each time it did.
"""

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import torch

from jaxpeft import optim
from jaxpeft.optim.ademamix import ademamix
from jaxpeft.optim.apollo import apollo_rule
from jaxpeft.optim.galore import galore, galore_rule
from jaxpeft.optim.grokadamw import grokadamw
from jaxpeft.optim.muon import muon
from jaxpeft.optim.prodigy import prodigy
from jaxpeft.optim.projection import LateAdam, Projector, Targets
from oracles.testbed import Parameters, Row

RATE, DECAY, GAP = 1e-3, 0.01, 60


class Transposed:
    """torch optimizers over the transposes of kernels, and over biases as they are."""

    def __init__(self, params: Parameters, make: Callable[[Parameters], list[Any]]):
        self.params = params
        # A transpose shares its numbers with the parameter.
        self.seen = {
            n: torch.nn.Parameter(p.data.T if p.ndim == 2 else p.data)
            for n, p in params.items()
        }
        self.optimizers = make(self.seen)
        self.steps = 0

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for parameter in self.params.values():
            parameter.grad = None

    def step(self) -> None:
        """One step of all the optimizers."""
        for name, parameter in self.params.items():
            grad = parameter.grad
            self.seen[name].grad = grad.T.clone() if grad.ndim == 2 else grad.clone()
        for optimizer in self.optimizers:
            optimizer.step()
        self.steps += 1


class Drawing(Transposed):
    """A `Transposed` that notes each projection, (reduced, rank), by name."""

    def __init__(self, params: Parameters, make: Any, gap: int):
        super().__init__(params, make)
        self.gap, self.drawn = gap, {n: [] for n, p in params.items() if p.ndim == 2}

    def step(self) -> None:
        """One step, and a note of the projections if they are new."""
        super().step()
        if (self.steps - 1) % self.gap:
            return
        for name, notes in self.drawn.items():
            seen = self.seen[name]
            matrix = self.optimizers[0].state[seen]["projector"].ortho_matrix
            wide = seen.shape[0] >= seen.shape[1]  # then it is stored (rank, reduced)
            notes.append((matrix.T if wide else matrix).numpy().copy())

    def projector(self) -> Projector:
        """The projections noted, for our side."""
        tables = {name: jnp.asarray(np.stack(m)) for name, m in self.drawn.items()}

        def projection(g: Any, last: Any, ctx: Any) -> Any:
            return tables[ctx.place.name][(ctx.t - 1) // self.gap]

        return Projector(projection, stored=False)


def grouped(params: Parameters, **matrices: Any) -> list[dict[str, Any]]:
    """Parameter groups as transformers makes them: matrices have a rank."""
    vectors = [p for p in params.values() if p.ndim != 2]
    kernels = [p for p in params.values() if p.ndim == 2]
    return [{"params": vectors}, {"params": kernels, "proj_type": "std", **matrices}]


def apollo_row(
    name: str,
    rank: int,
    scale: float,
    kind: Any,
    proj: str = "random",
    rate: float = RATE,
    loop: Any = "closed",
) -> Row:
    """APOLLO with the projections that the reference drew."""
    ran: list[Drawing] = []

    def theirs(params: Parameters) -> Any:
        from apollo_torch import APOLLOAdamW

        settings = {"rank": rank, "scale": scale, "scale_type": kind, "proj": proj}

        def make(seen: Parameters) -> list[Any]:
            groups = grouped(seen, update_proj_gap=GAP, **settings)
            return [APOLLOAdamW(groups, lr=rate, weight_decay=DECAY)]

        ran[:] = [Drawing(params, make, GAP)]
        return ran[0]

    def ours() -> optax.GradientTransformation:
        adam = LateAdam(0.9, 0.999, 1e-6)
        rule = apollo_rule(adam, ran[0].projector(), Targets(), rank, scale, kind)
        return optim.transformation(rule, rate, weight_decay=DECAY)

    return Row(name, "apollo_torch.APOLLOAdamW", ours, theirs, bound=2e-5, loop=loop)


def galore_theirs(params: Parameters, gap: int) -> Drawing:
    """GaLoreAdamW with rank 16, scale 0.25."""
    from galore_torch import GaLoreAdamW

    def make(seen: Parameters) -> list[Any]:
        groups = grouped(seen, rank=16, scale=0.25, update_proj_gap=gap)
        settings = {"lr": RATE, "weight_decay": DECAY, "no_deprecation_warning": True}
        return [GaLoreAdamW(groups, **settings)]

    return Drawing(params, make, gap)


def galore_injected() -> Row:
    """GaLore with the projections that the reference took."""
    ran: list[Drawing] = []

    def theirs(params: Parameters) -> Any:
        ran[:] = [galore_theirs(params, GAP)]
        return ran[0]

    def ours() -> optax.GradientTransformation:
        adam, targets = LateAdam(0.9, 0.999, 1e-6), Targets()
        rule = galore_rule(adam, ran[0].projector(), targets, 16, 0.25)
        return optim.transformation(rule, RATE, weight_decay=DECAY)

    name = "galore, its projections"
    return Row(name, "galore_torch.GaLoreAdamW", ours, theirs, bound=2e-5)


class Quiet:
    """GrokAdamW, which warns of its own autocast at every step."""

    def __init__(self, params: Parameters, **settings: Any):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from grokadamw import GrokAdamW

        self.inner = GrokAdamW(params.values(), lr=RATE, **settings)
        self.zero_grad = self.inner.zero_grad

    def step(self) -> None:
        """One step without its warnings."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.inner.step()


def muon_theirs(params: Parameters, adjust: str, exact: bool) -> Any:
    """torch's Muon for kernels, its AdamW for biases.

    exact: with the iteration in float32, not bfloat16.
    """

    def make(seen: Parameters) -> list[Any]:
        kernels = [p for p in seen.values() if p.ndim == 2]
        biases = [p for p in seen.values() if p.ndim != 2]
        matrices = torch.optim.Muon(kernels, lr=RATE, adjust_lr_fn=adjust)
        return [matrices, torch.optim.AdamW(biases, lr=RATE, weight_decay=0.1)]

    made = Transposed(params, make)
    if exact:
        inner = made.step
        made.step = lambda: in_float32(inner)
    return made


def in_float32(step: Callable[[], None]) -> None:
    """A step during which `Tensor.bfloat16` keeps float32."""
    original = torch.Tensor.bfloat16
    torch.Tensor.bfloat16 = lambda self: self.clone()
    try:
        step()
    finally:
        torch.Tensor.bfloat16 = original


def prodigy_theirs(params: Parameters, **settings: Any) -> Any:
    """prodigyopt's Prodigy, without its remark on standard output."""
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):
        return Prodigy(params.values(), weight_decay=DECAY, **settings)


def ademamix_theirs(params: Parameters, **settings: Any) -> Any:
    """bitsandbytes' AdEMAMix with 32-bit state."""
    import bitsandbytes

    return bitsandbytes.optim.AdEMAMix(
        params.values(), lr=RATE, weight_decay=DECAY, **settings
    )


ROWS = [
    apollo_row("apollo, channels", 16, 1.0, "channel"),
    apollo_row("apollo, tensors", 16, 1.0, "tensor"),
    apollo_row("apollo, svd", 16, 1.0, "channel", proj="svd", rate=3e-4),
    # Steps of sqrt(128) times the rate overshoot here, and double any difference
    # every few steps: the loop is closed at a lower rate.
    apollo_row("apollo_mini", 1, 128.0, "tensor", loop="open"),
    apollo_row("apollo_mini", 1, 128.0, "tensor", rate=1e-4),
    galore_injected(),
    # Each side decomposes the first gradient; the rounding of the vectors, over gaps
    # between singular values, is all that is left then.
    Row(
        "galore, one projection",
        "galore_torch.GaLoreAdamW",
        lambda: galore(RATE, 16, update_proj_gap=10_000, weight_decay=DECAY),
        lambda p: galore_theirs(p, 10_000),
        bound=2e-4,
    ),
    Row(
        "grokadamw",
        "grokadamw.GrokAdamW",
        lambda: grokadamw(RATE),
        lambda p: Quiet(p),
        bound=5e-5,
        loop="open",
    ),
    # After 1000 steps a single entry of the last bias is 5e-4 apart, the others 2e-5.
    Row(
        "grokadamw",
        "grokadamw.GrokAdamW",
        lambda: grokadamw(RATE),
        lambda p: Quiet(p),
        bound=5e-5,
        measure="rms",
    ),
    Row(
        "muon, in float32",
        "torch.optim.Muon, its iteration in float32",
        lambda: muon(RATE),
        lambda p: muon_theirs(p, "original", exact=True),
        bound=1e-4,
    ),
    Row(
        "muon, match_rms_adamw",
        "torch.optim.Muon, its iteration in float32",
        lambda: muon(RATE, adjust_lr_fn="match_rms_adamw"),
        lambda p: muon_theirs(p, "match_rms_adamw", exact=True),
        bound=5e-4,  # its steps are twice as long
        bound_200=1e-4,
    ),
    Row(
        "muon",
        "torch.optim.Muon",
        lambda: muon(RATE),
        lambda p: muon_theirs(p, "original", exact=False),
        bound=5e-3,
    ),
    # d grows from d0 by what <g, p0 - p> says, and with the default of 1e-6 the first
    # differences p0 - p are of 1e-6 with the rounding of p, a hundredth of them. And
    # the rates found are so high that a closed loop multiplies a difference by some
    # hundreds between steps 200 and 1000.
    Row(
        "prodigy",
        "prodigyopt.Prodigy",
        lambda: prodigy(weight_decay=DECAY),
        lambda p: prodigy_theirs(p),
        bound=1e-3,
        loop="open",
    ),
    Row(
        "prodigy, d0 of 1e-3",
        "prodigyopt.Prodigy",
        lambda: prodigy(weight_decay=DECAY, d0=1e-3),
        lambda p: prodigy_theirs(p, d0=1e-3),
        bound=2e-5,
        loop="open",
    ),
    Row(
        "prodigy, bias corrected, d0 of 1e-3",
        "prodigyopt.Prodigy",
        lambda: prodigy(weight_decay=DECAY, d0=1e-3, use_bias_correction=True),
        lambda p: prodigy_theirs(p, d0=1e-3, use_bias_correction=True),
        bound=2e-5,
        loop="open",
    ),
    Row(
        "prodigy, a tenth of d",
        "prodigyopt.Prodigy",
        lambda: prodigy(weight_decay=DECAY, d0=1e-4, d_coef=0.1),
        lambda p: prodigy_theirs(p, d0=1e-4, d_coef=0.1),
        bound=1e-2,
        bound_200=1e-3,
    ),
    Row(
        "ademamix",
        "bitsandbytes AdEMAMix, 32 bits",
        lambda: ademamix(RATE, weight_decay=DECAY),
        lambda p: ademamix_theirs(p),
        bound=5e-5,
    ),
    Row(
        "ademamix, warming up",
        "bitsandbytes AdEMAMix, 32 bits",
        lambda: ademamix(RATE, t_alpha=150, t_beta3=150, weight_decay=DECAY),
        lambda p: ademamix_theirs(p, t_alpha=150, t_beta3=150),
        bound=5e-5,
        loop="open",  # so short a warmup throws the network about
    ),
]
