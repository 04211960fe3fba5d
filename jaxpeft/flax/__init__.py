"""Adapters for any Flax model, and our models as Flax modules."""

from jaxpeft.flax.nnx import inject, merge

__all__ = ["inject", "merge"]
