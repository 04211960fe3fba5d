"""The few row lengths that batches are padded to, so that a run compiles few shapes."""

from collections.abc import Sequence

import numpy as np

MULTIPLE = 32
_MAX_CANDIDATES = 512


def choose_lengths(
    lengths: np.ndarray, weights: np.ndarray, *, buckets: int, longest: int, limit: int
) -> tuple[int, ...]:
    """The row lengths, at most `buckets`, that cost the fewest padded tokens.

    The choice is exact, by dynamic programming over the multiples of 32, or over a
    coarser grid where contexts are very long.

    Args:
        lengths: (n,) int, how long the longest example of a batch is, in tokens.
        weights: (n,) float, how often each of `lengths` occurs.
        buckets: how many lengths there may be.
        longest: tokens in the longest example; the largest length holds it.
        limit: no length exceeds this one (max_length), a multiple of 32 or not.

    Returns:
        The lengths in tokens, ascending.
    """
    # Candidate j is (j + 1) * multiple. Very long contexts get a coarser grid.
    multiple = MULTIPLE * -(-longest // (MULTIPLE * _MAX_CANDIDATES)) or MULTIPLE
    count = -(-max(longest, 1) // multiple)
    last = min(count * multiple, limit)
    slots = np.clip(-(-lengths // multiple) - 1, 0, count - 1)
    held = np.cumsum(np.bincount(slots, weights, count))
    held = np.concatenate([[0.0], held])  # weight up to candidate j - 1
    sizes = np.arange(1, count + 1) * multiple
    sizes[-1] = last

    cost = sizes * held[1:]  # one bucket up to and including each candidate
    choices = []
    for _ in range(min(buckets, count) - 1):
        # total[i, j]: the buckets so far end at i, one more ends at j > i.
        total = cost[:, None] + sizes[None] * (held[None, 1:] - held[1:, None])
        total[np.tril_indices(count)] = np.inf
        best = np.minimum(cost, total.min(axis=0))
        choices.append(np.where(total.min(axis=0) < cost, total.argmin(axis=0), -1))
        cost = best

    chosen, at = [last], count - 1
    for previous in reversed(choices):
        if previous[at] >= 0:
            at = int(previous[at])
            chosen.append(int(sizes[at]))
    return tuple(reversed(chosen))


def batch_maxima(
    lengths: Sequence[np.ndarray],
    shares: Sequence[float],
    *,
    batch_size: int,
    shuffle: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """How long the longest example of a batch is, and how often it is that long.

    Shuffled, the longest of B draws is at most n with probability F(n)^B, where F is
    the share of examples no longer than n. In file order, the batches themselves are
    looked at.

    Args:
        lengths: per source, (examples,) the lengths of its examples in order.
        shares: per source, the part of all draws that it supplies; they sum to 1.
        batch_size: examples in a batch.
        shuffle: whether examples are drawn in random order.

    Returns:
        The lengths of longest examples, (n,) int, and how often each occurs, (n,)
            float.
    """
    if not shuffle and len(lengths) == 1:
        order = np.resize(lengths[0], -(-len(lengths[0]) // batch_size) * batch_size)
        maxima = order.reshape(-1, batch_size).max(axis=1)
        return maxima, np.ones(len(maxima))
    values = np.unique(np.concatenate(lengths))
    below = sum(
        share * np.searchsorted(np.sort(own), values, "right") / len(own)
        for own, share in zip(lengths, shares)
    )
    reached = np.asarray(below) ** batch_size
    return values, np.diff(reached, prepend=0.0)
