"""Values between Hugging Face's tensors and ours: memory, transposition, checks."""

import math

import numpy as np

from jaxpeft.errors import InputError

# XLA on CPU takes an array over without a copy when it begins on such a boundary.
ALIGNMENT = 64
# Rows a time when transposing: with 16, a cache line of the target is written whole.
ROWS = 16


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that `jax.device_put` does not have to copy on CPU."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    offset = -raw.ctypes.data % ALIGNMENT
    return raw[offset : offset + size].view(dtype).reshape(shape)


def copy(source: np.ndarray, target: np.ndarray, *, transposed: bool) -> None:
    """Fills `target` from `source` or its transpose, cast to the target's dtype.

    Values beyond the target's range become infinite: see `is_finite`.

    Args:
        source: The values, of the target's shape, or with `transposed` a matrix of the
            transposed shape.
        target: The array that is written.
        transposed: Whether the transpose is copied.
    """
    with np.errstate(all="ignore"):
        if not transposed:
            target[...] = source
            return
        for row in range(0, source.shape[0], ROWS):
            target[:, row : row + ROWS] = source[row : row + ROWS].T


def is_finite(values: np.ndarray) -> bool:
    """Whether a float32, float16 or bfloat16 array is free of NaN and infinity.

    The check works on the bits: as integers, the non-finite values are the largest of
    their sign. That takes no memory and is faster than arithmetic on 16-bit floats.
    """
    if not values.size:
        return True
    signed, unsigned = (
        (np.int32, np.uint32) if values.dtype.itemsize == 4 else (np.int16, np.uint16)
    )
    positive = values.view(signed).max()
    negative = values.view(unsigned).max()
    infinity = np.array([np.inf, -np.inf], values.dtype)
    return bool(
        positive < infinity.view(signed)[0] and negative < infinity.view(unsigned)[1]
    )


def require_finite(values: np.ndarray, name: str) -> None:
    """Checks that a tensor is free of NaN and infinity.

    Args:
        values: The tensor, float32, float16 or bfloat16.
        name: What the message calls it.

    Raises:
        InputError: Where it holds NaN or infinity.
    """
    if not is_finite(values):
        raise InputError(
            f"{name}: holds NaN or infinity; the file is damaged or its training "
            "diverged, so use another copy or an earlier checkpoint"
        )
