"""Adapters for any Flax model, and our models as Flax modules.

`inject`, `merge`, `save` and `load` are for NNX; `jaxpeft.flax.linen` has the same for
the variables of Linen models, and `Model` makes a model of ours an NNX module.
"""

from jaxpeft.flax.module import Model
from jaxpeft.flax.nnx import inject, load, merge, save

__all__ = ["Model", "inject", "load", "merge", "save"]
