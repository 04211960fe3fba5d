"""Deprecations: the references' pass, those of our code and what it stands on fail."""

import sys
import types
import warnings

import pytest

DEPRECATIONS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


def call_from(module, level, category):
    """A library's function warns its caller, a function of the module, `level` up."""
    caller = types.ModuleType(module)
    caller.deprecated = lambda: warnings.warn("old", category, stacklevel=level)
    exec("def call():\n    return deprecated()", caller.__dict__)
    caller.call()


@pytest.mark.parametrize("category", DEPRECATIONS)
@pytest.mark.parametrize(
    "module", ["torch", "torch.nn.modules.module", "transformers.utils", "peft.tuners"]
)
def test_a_reference_may_call_what_is_deprecated(module, category):
    call_from(module, 2, category)


@pytest.mark.parametrize("category", DEPRECATIONS)
@pytest.mark.parametrize(
    "module", ["jaxpeft.optim.muon", "tests.test_x", "torches", "jax.torch", "optax"]
)
def test_our_code_may_not(module, category):
    with pytest.raises(category, match="old"):
        call_from(module, 2, category)


def test_a_reference_may_not_warn_of_more_than_deprecations():
    with pytest.raises(UserWarning, match="old"):
        call_from("torch", 2, UserWarning)


def test_what_jax_deprecates_fails_here():
    """jax warns of a name by its module's __getattr__, at whoever asks for it."""
    from jax._src import deprecations

    module = types.ModuleType("jax.made_for_this_test")
    sys.modules[module.__name__] = module
    try:
        renamed = {"old": ("jax.old is deprecated", 1)}
        module.__getattr__ = deprecations.deprecation_getattr(module.__name__, renamed)
        with pytest.raises(DeprecationWarning, match=r"jax\.old is deprecated"):
            _ = module.old
    finally:
        del sys.modules[module.__name__]
