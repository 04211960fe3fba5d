"""The linear modules of a model under Hugging Face's names."""

from collections.abc import Set
from dataclasses import dataclass

from jaxpeft import tree
from jaxpeft.models.spec import ModelConfig
from jaxpeft.models.weights import param_specs

PREFIX = "base_model.model."  # of every key in PEFT's files


@dataclass(frozen=True)
class Module:
    """A linear module of the base: its weight's place in the params, and its size."""

    path: str  # dotted name of the kernel in the params mapping
    layer: int | None  # None: not stacked
    d_in: int
    d_out: int


def linear_modules(cfg: ModelConfig) -> dict[str, Module]:
    """{Hugging Face's module name: module} for every linear module of a model."""
    found = {}
    for path, spec in tree.walk(param_specs(cfg)):
        if path.endswith(".kernel"):
            for layer, name in enumerate(spec.module_names()):
                found[name] = Module(
                    path, layer if spec.stacked else None, *spec.shape[-2:]
                )
    return found


def shortened(chosen: Set[str], everything: Set[str]) -> list[str]:
    """Names that select exactly `chosen`: the last component wherever that does."""
    left_out = {last(name) for name in everything - chosen}
    return sorted({n if last(n) in left_out else last(n) for n in chosen})


def last(name: str) -> str:
    """The last component of a module's name."""
    return name.rsplit(".", 1)[-1]
