"""AdamW: Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

from typing import Any

import optax


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    mask: Any = None,
) -> optax.GradientTransformation:
    """p <- p - rate * (m / (sqrt(v) + eps) + weight_decay * p), moments debiased.

    m <- b1 m + (1 - b1) g and v <- b2 v + (1 - b2) g**2, float32: 8 bytes a parameter.
    mask: which parameters decay, a tree of booleans or a function to one; None: all.
    optax's own, with the decay that torch's AdamW has by default.
    """
    return optax.adamw(
        learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask
    )
