"""Adapters for any Flax model, and our models as Flax modules.

`inject`, `merge`, `save` and `load` are for NNX; `jaxpeft.flax.linen` has the same for
the variables of Linen models.
"""

from jaxpeft.flax.nnx import inject, load, merge, save

__all__ = ["inject", "load", "merge", "save"]
