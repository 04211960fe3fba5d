"""A LoRA around the table that tokens are looked up in."""

from collections.abc import Sequence
from typing import Any

from jax import Array

from jaxpeft.adapters import lora_init
from jaxpeft.adapters.lora import LoRA, Patterns, lora
from jaxpeft.errors import InputError


def lora_embedding(
    base: Any,
    key: Array,
    *,
    names: Sequence[str] = (),
    r: int = 8,
    lora_alpha: float = 8.0,
    lora_dropout: float = 0.0,
    use_rslora: bool = False,
    init_lora_weights: bool | str = True,
    rank_pattern: Patterns | None = None,
    alpha_pattern: Patterns | None = None,
) -> LoRA:
    """A LoRA around an embedding, looked up as `base[t] + scale * a[t] @ b`.

    As in PEFT it begins with A zero and B standard normal, no dropout touches it, and
    a head that shares the table reads the base alone. The other arguments are those of
    `lora`.

    Args:
        base: the table, (vocab, d).
        key: of the draw.
        lora_dropout: not used.
        init_lora_weights: one of `lora_init.RANDOM`; "zero" makes B zero too.

    Raises:
        InputError: a number cannot be used, or `init_lora_weights` is another.
    """
    del lora_dropout
    if init_lora_weights not in lora_init.RANDOM:
        raise InputError(
            f"adapter.init_lora_weights: found {init_lora_weights!r}, which the "
            "embedding in target_modules cannot begin with; leave one of them out"
        )
    node = lora(
        base,
        key,
        names=names,
        r=r,
        lora_alpha=lora_alpha,
        use_rslora=use_rslora,
        init_lora_weights="zero",
        rank_pattern=rank_pattern,
        alpha_pattern=alpha_pattern,
    )
    start = lora_init.draw_embedding(init_lora_weights, base, key, node.rank)
    return node.replace(a=start.a, b=start.b)  # type: ignore[attr-defined]
