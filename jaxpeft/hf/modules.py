"""The modules that adapters stand in, under Hugging Face's names."""

from collections.abc import Set
from dataclasses import dataclass

from jaxpeft import tree
from jaxpeft.models.spec import ModelConfig
from jaxpeft.models.weights import param_specs

PREFIX = "base_model.model."  # of every key in PEFT's files


@dataclass(frozen=True)
class Module:
    """A module of the base: its weight's place in the params, and its size.

    Of an embedding d_in counts the tokens.
    """

    path: str  # dotted name of the kernel in the params mapping
    layer: int | None  # None: not stacked
    d_in: int
    d_out: int
    embedding: bool = False


def linear_modules(cfg: ModelConfig) -> dict[str, Module]:
    """{Hugging Face's module name: module} for every linear module of a model."""
    return {n: m for n, m in lora_modules(cfg).items() if not m.embedding}


def lora_modules(cfg: ModelConfig) -> dict[str, Module]:
    """Likewise of what a LoRA can stand in: the embedding too."""
    found = {}
    for path, spec in tree.walk(param_specs(cfg)):
        if path.endswith((".kernel", ".embedding")):
            for layer, name in enumerate(spec.hf_names()):
                found[name.removesuffix(".weight")] = Module(
                    path,
                    layer if spec.stacked else None,
                    *spec.shape[-2:],
                    embedding=path.endswith(".embedding"),
                )
    return found


def shortened(chosen: Set[str], everything: Set[str]) -> list[str]:
    """Names that select exactly `chosen`: the last component wherever that does."""
    left_out = {last(name) for name in everything - chosen}
    return sorted({n if last(n) in left_out else last(n) for n in chosen})


def last(name: str) -> str:
    """The last component of a module's name."""
    return name.rsplit(".", 1)[-1]
