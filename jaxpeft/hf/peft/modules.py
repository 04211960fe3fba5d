"""The modules that adapters stand in, under Hugging Face's names."""

from collections.abc import Collection, Mapping, Set
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
    experts: int | None = None  # whose kernels stand side by side in it
    parameter: str | None = None  # a bare parameter's name, see `ParamSpec`
    embedding: bool = False

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes of one layer's kernel before (d_in, d_out)."""
        return () if self.experts is None else (self.experts,)


def linear_modules(cfg: ModelConfig) -> dict[str, Module]:
    """{Hugging Face's module name: module} for every linear module of a model."""
    return {n: m for n, m in lora_modules(cfg).items() if not m.embedding}


def lora_modules(cfg: ModelConfig) -> dict[str, Module]:
    """Likewise of what a LoRA can stand in: the embedding too."""
    found = {}
    for path, spec in tree.walk(param_specs(cfg)):
        if path.endswith((".kernel", ".embedding")):
            for layer, name in enumerate(spec.module_names()):
                found[name] = Module(
                    path,
                    layer if spec.stacked else None,
                    *spec.shape[-2:],
                    *spec.stack[1:],
                    parameter=spec.parameter and spec.parameter.format(layer),
                    embedding=path.endswith(".embedding"),
                )
    return found


def places(chosen: Collection[str], modules: Mapping[str, Module]) -> dict[str, str]:
    """{module: the name before the tensors of its adapter in PEFT's file}.

    chosen: the modules that are adapted, in the model's order. PEFT wraps what holds
    the experts once for each of its parameters, the first one innermost.
    """
    found = {name: name for name in chosen}
    for name in chosen:
        if modules[name].experts is not None:
            holder = name.rpartition(".")[0]
            inside = [n for n in chosen if n.rpartition(".")[0] == holder]
            depth = len(inside) - 1 - inside.index(name)
            found[name] = holder + ".base_layer" * depth
    return found


def shortened(chosen: Set[str], everything: Set[str]) -> list[str]:
    """Names that select exactly `chosen`: the last component wherever that does."""
    left_out = {last(name) for name in everything - chosen}
    return sorted({n if last(n) in left_out else last(n) for n in chosen})


def last(name: str) -> str:
    """The last component of a module's name, of a parameter "weight" the last two."""
    return ".".join(name.rsplit(".", 2)[-2 if name.endswith(".weight") else -1 :])
