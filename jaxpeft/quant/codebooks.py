"""Code books: the few numbers of [-1, 1] or [0, 1] that 8 or 4 bits stand for.

The dynamic ones lie closer together near zero. Each of seven decades, 10**-6 to 1, is
cut into equal bins, twice as many as the decade below has, and a code stands for the
middle of its bin; 0 and 1 have codes of their own, -1 has none. The signed book has 1
to 64 bins in a decade, the unsigned one 2 to 128. With 4 bits the signed book has three
decades, and the unsigned one is linear, 1/16 to 1. Dettmers et al., "8-bit Optimizers
via Block-wise Quantization", 2022; Li et al., "Memory Efficient Optimizers with 4-bit
States", 2023.

Encoding looks up a number's sign, exponent and first 7 bits of mantissa: all numbers
that share them lie around at most one middle of two neighbours, which then decides.
That is exact, and on a CPU faster than arithmetic. On a TPU, where a lookup is slow, it
is arithmetic: code k above zero lies in bin k - 2**e of decade e = floor(log2 k) of D,
and its value is 10**(e - D + 1) (0.1 + 0.9 ((k + 1/2) / 2**e - 1)), but for the last
bits; one number in 10**5, off the middle by a rounding, then gets the other neighbour.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32, UInt8

from jaxpeft import hardware


def values(signed: bool, bits: int = 8) -> Float32[np.ndarray, " codes"]:
    """The 2**bits numbers of a code book in the order of their codes, float32.

    Args:
        signed: whether negative numbers have codes.
        bits: bits in a code, 8 or 4.
    """
    if bits == 4 and not signed:
        return np.arange(1, 17, dtype=np.float32) / 16
    return _dynamic_map(signed, bits - 1)


def encode(
    x: Float32[Array, "*shape"],
    signed: bool,
    bits: int = 8,
    tables: bool | None = None,
) -> UInt8[Array, "*shape"]:
    """The codes of the values nearest to the elements of `x`.

    Args:
        x: numbers of [-1, 1], or of [0, 1] if not `signed`.
        signed: whether negative numbers have codes.
        bits: bits in a code, 8 or 4.
        tables: true: by lookup, which is exact and gives the lower one of two values
            equally near; false: by arithmetic, which gives either one where rounding
            decides; None: the one that is faster on the backend.
    """
    if not _by_tables(tables):
        return _encode(x, signed, bits).astype(jnp.uint8)
    pattern = jax.lax.bitcast_convert_type(x, jnp.int32)
    key = jax.lax.shift_right_logical(pattern, np.int32(_REST_BITS))
    entry = _take(_lookup(signed, bits), key)
    past = (pattern & _REST) > (entry & _REST)
    step = jnp.where(past, jnp.where(pattern < 0, -1, 1), 0)
    return ((entry >> _REST_BITS) + step).astype(jnp.uint8)


def decode(
    codes: UInt8[Array, "*shape"],
    signed: bool,
    bits: int = 8,
    tables: bool | None = None,
) -> Float32[Array, "*shape"]:
    """The values that codes stand for.

    Args:
        codes: the codes.
        signed: whether negative numbers have codes.
        bits: bits in a code, 8 or 4.
        tables: true: by lookup, which is exact; false: by arithmetic, which gives
            values within 6e-7 of the exact ones; None: the one that is faster on the
            backend.
    """
    if not _by_tables(tables):
        return _decode(codes, signed, bits)
    return _take(values(signed, bits), codes.astype(jnp.int32))


def decode_all(
    codes: Sequence[UInt8[Array, "*shape"]], books: Sequence[tuple[bool, int]]
) -> list[Float32[Array, "*shape"]]:
    """The values of several arrays of codes.

    XLA for CPUs gives a lookup to one core unless it is long: there it is one for all.

    Args:
        codes: the codes, all of one shape.
        books: (signed, bits) of each array's code book.

    Returns:
        What `decode` gives for each array.
    """
    if len(codes) == 1 or hardware.current().platform != "cpu":
        return [decode(q, *book) for q, book in zip(codes, books)]
    tables = [values(*book) for book in books]
    starts = np.cumsum([0, *map(len, tables[:-1])])
    index = jnp.stack([q.astype(jnp.int32) + n for q, n in zip(codes, starts)])
    return list(_take(np.concatenate(tables), index))


# Of a float32's 32 bits the upper 16 are the key: sign, exponent, 7 bits of mantissa.
_REST_BITS, _REST = 16, 2**16 - 1


@functools.cache
def _lookup(signed: bool, bits: int) -> np.ndarray:
    """For each key the code of its smallest magnitude, and where the next one begins.

    int32: the code, and in the lower half the rest of the last magnitude that has it;
    all ones where the key's numbers have one code.
    """
    books = values(signed, bits).astype(np.float64)
    middles = (books[1:] + books[:-1]) / 2
    keys = np.arange(2 ** (32 - _REST_BITS), dtype=np.uint32) << np.uint32(_REST_BITS)

    def code(pattern: np.ndarray) -> np.ndarray:
        x = np.nan_to_num(pattern.view(np.float32), nan=0.0).astype(np.float64)
        return np.searchsorted(middles, x, side="left")

    first, last = code(keys), code(keys | np.uint32(_REST))
    # Halving the rest again and again finds the last pattern with the first code.
    low, high = np.zeros_like(keys), np.full_like(keys, _REST)
    for _ in range(_REST_BITS):
        middle = (low + high + 1) // 2
        same = code(keys | middle) == first
        low, high = np.where(same, middle, low), np.where(same, high, middle - 1)
    rest = np.where(first == last, np.uint32(_REST), low)
    return ((first << _REST_BITS) | rest).astype(np.int32)


def _take(table: np.ndarray, index: Array) -> Array:
    values = jnp.asarray(table).at[index]
    return values.get(mode="promise_in_bounds", wrap_negative_indices=False)


def _by_tables(wanted: bool | None) -> bool:
    return hardware.current().platform != "tpu" if wanted is None else wanted


def _encode(x: Array, signed: bool, bits: int) -> Array:
    """The codes by arithmetic, int32, exact but where a number is near a middle."""
    if bits == 4 and not signed:
        return jnp.clip(jnp.floor(x * 16 - 0.5), 0, 15).astype(jnp.int32)
    decades = bits - 1
    size = jnp.abs(x) if signed else x
    first = 1 if signed else 2  # the lowest code above zero; also the bins down there
    lows = [first * 2**decade for decade in range(decades)]
    above = values(signed, bits).astype(np.float64)[-(2 * lows[-1] - first + 1) :]
    # Where decades meet, the border is in the middle of the two values there.
    borders = [(above[k - first - 1] + above[k - first]) / 2 for k in lows[1:]]
    slopes = [10.0 ** (decades - 1 - d) * low / 0.9 for d, low in enumerate(lows)]

    slope, low = jnp.float32(slopes[-1]), jnp.float32(lows[-1])
    for decade in reversed(range(decades - 1)):
        below = size < np.float32(borders[decade])
        slope = jnp.where(below, np.float32(slopes[decade]), slope)
        low = jnp.where(below, np.float32(lows[decade]), low)
    k = jnp.floor(size * slope + low * np.float32(0.8 / 0.9))
    k = jnp.clip(k, low, 2 * low - 1)
    k = jnp.where(size < np.float32(above[0] / 2), np.float32(first - 1), k)
    top = x >= np.float32((above[-2] + 1) / 2)  # nearer to 1 than to the last bin
    k = jnp.where(top, np.float32(2 * lows[-1]), k).astype(jnp.int32)
    zero = 2**decades - 1
    return zero + jnp.where(x < 0, -k, k) if signed else k - 1


def _decode(codes: Array, signed: bool, bits: int) -> Array:
    q = codes.astype(jnp.int32)
    if bits == 4 and not signed:
        return (q + 1).astype(jnp.float32) * np.float32(1 / 16)
    decades = bits - 1
    zero = 2**decades - 1 if signed else 0
    k = jnp.abs(q - zero) if signed else q + 1
    pattern = jax.lax.bitcast_convert_type(k.astype(jnp.float32) + 0.5, jnp.int32)
    # (k + 1/2) / 2**e, of [1, 2): the same mantissa with the exponent of 1.
    mantissa = (pattern & 0x7FFFFF) | 0x3F800000
    middle = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1
    middle = np.float32(0.9) * middle + np.float32(0.1)
    decade = (pattern >> 23) - (127 if signed else 128)
    size = middle * _power_of_ten(decade, 1 - decades)
    size = jnp.where(q == zero, 0, size)
    size = jnp.where(q == 2**bits - 1, 1, size)
    return jnp.where(q < zero, -size, size) if signed else size


def _power_of_ten(decade: Array, lowest: int) -> Array:
    """10**(decade + lowest) for a decade of 0 to 7, from its three binary digits."""
    low = np.float32(10.0**lowest)
    power = jnp.where(decade & 1, np.float32(10.0 ** (lowest + 1)), low)
    power = jnp.where(decade & 2, 100 * power, power)
    return jnp.where(decade & 4, 10_000 * power, power)


def _dynamic_map(signed: bool, decades: int) -> np.ndarray:
    """The dynamic code book, ascending: bit for bit that of bitsandbytes.

    It takes the edges of the bins from a linear space in float32, counted from its
    nearer end, and rounds what is derived from them to float32 at every step.
    """
    low = np.float64(np.float32(0.1))
    parts = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    for decade in range(decades):
        bins = 2 ** (decade + (not signed))
        width = np.float64(np.float32((1 - low) / bins))
        j = np.arange(bins + 1)
        upper = j >= (bins + 1) // 2
        edges = np.where(upper, 1 - width * (bins - j), low + width * j)
        edges = edges.astype(np.float32)
        middles = (edges[:-1] + edges[1:]) / np.float32(2)
        middles *= np.float32(10.0 ** (decade - decades + 1))
        parts += [middles, -middles] if signed else [middles]
    return np.sort(np.concatenate(parts))
