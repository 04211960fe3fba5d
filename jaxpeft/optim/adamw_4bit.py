"""AdamW with moments of 4 bits: two codes a byte, a scale a block."""

from typing import Any

import optax

from jaxpeft.optim.adamw_8bit import quantized_adamw_rule
from jaxpeft.optim.layout import Layout
from jaxpeft.optim.quantize_state import Selection
from jaxpeft.optim.ranges import in_range
from jaxpeft.optim.rule import RuleTransformation, transformation


@in_range
def adamw_4bit(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    mask: Any = None,
    *,
    block_size: int = 128,
    min_quantized_size: int = 4096,
    float32_names: str | None = None,
    layout: Layout | None = None,
) -> RuleTransformation:
    """AdamW (see `adamw_8bit`) that keeps both moments in 4 bits between the updates.

    m is one of 16 numbers of both signs, spaced about logarithmically, times the scale
    of its block; v one of 1/16, 2/16 ... 1, never zero. State: 1.06 bytes a parameter,
    two codes a byte, the even element in the high half; 8 bytes a parameter where a
    tensor is not quantized.

    The layout is that of torchao's AdamW4bit (after Li et al., "Memory Efficient
    Optimizers with 4-bit States", 2023), which has other defaults elsewhere: here
    1 - b**t is not rounded, the moments and the decay have the algebraic form of
    `adamw`, and a block of zeros has scale zero instead of 1e-12.

    Args:
        learning_rate: the rate, a number or a schedule: a function of the updates made.
        b1: the decay of m, from 0 to below 1.
        b2: the decay of v, from 0 to below 1.
        eps: what is added to the root of v, 0 or more.
        weight_decay: the factor of the decay in the formulas; 0: none.
        mask: which leaves decay, a tree of booleans or a function from the parameters
            to one; None: all.
        block_size: elements to a scale, an even number. Tensors that are not whole
            blocks keep float32 moments.
        min_quantized_size: tensors of fewer elements (a layer of a stack counts alone)
            keep float32 moments.
        float32_names: a regular expression; leaves whose whole names it matches keep
            float32 moments. None: no leaf does.
        layout: which leaves stack layers, and the groups of tensors with settings of
            their own; None: neither.

    Raises:
        InputError: for settings out of their range, all at once.
    """
    select = Selection(block_size, min_quantized_size, float32_names).check(bits=4)
    return transformation(
        quantized_adamw_rule(b1, b2, eps, select, bits=4),
        learning_rate,
        weight_decay=weight_decay,
        mask=mask,
        layout=layout,
    )
