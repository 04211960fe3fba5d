"""Decompositions of stacked matrices, one after the other on a CPU."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.custom_batching import sequential_vmap


def one_by_one(decompose: Callable[..., Any]) -> Callable[..., Any]:
    """A function of matrices that `vmap` calls for one after the other on a CPU.

    There jaxlib's LAPACK kernels (`ParallelBatchMap`, jaxlib 0.10.2) share out a stack
    over XLA's threads once it is work enough, and wait on one of these threads. As many
    such calls at once as there are threads wait for good: none is left to do the work.
    A call for one matrix hands nothing out. Other devices get the stack as a whole.

    Args:
        decompose: a function of arrays that calls LAPACK, without derivatives.

    Returns:
        The same function of the same arrays.
    """

    # `sequential_vmap` would trace what `decompose` has defaults for.
    @sequential_vmap
    def alone(*arrays: Array) -> Any:
        return decompose(*arrays)

    def called(*arrays: Array) -> Any:
        return jax.lax.platform_dependent(*arrays, cpu=alone, default=decompose)

    return called
