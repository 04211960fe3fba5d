"""The modules that adapters stand in, under Hugging Face's names."""

import re
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass

from jaxpeft import console, tree
from jaxpeft.models.multimodal import DECODER
from jaxpeft.models.spec import ModelConfig
from jaxpeft.models.weights import specs_with_head

PREFIX = "base_model.model."  # of every key in PEFT's files


@dataclass(frozen=True)
class Module:
    """A module of the base: its weight's place in the params, and its size.

    Attributes:
        path: The dotted name of its weight in the params mapping.
        layer: The layer's number in the stack; None where nothing is stacked.
        d_in: The width of its input; of an embedding, the number of tokens.
        d_out: The width of its output.
        experts: The number of experts whose kernels stand side by side in it, if any
            do.
        parameter: The name of the bare parameter that it stands for, see `ParamSpec`.
        embedding: Whether it is an embedding.
    """

    path: str
    layer: int | None
    d_in: int
    d_out: int
    experts: int | None = None
    parameter: str | None = None
    embedding: bool = False

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes of one layer's kernel before (d_in, d_out)."""
        return () if self.experts is None else (self.experts,)


def linear_modules(cfg: ModelConfig) -> dict[str, Module]:
    """The linear modules of a model, {Hugging Face's module name: module}."""
    return {n: m for n, m in lora_modules(cfg).items() if not m.embedding}


def lora_modules(cfg: ModelConfig) -> dict[str, Module]:
    """The modules that a LoRA can stand in, {Hugging Face's module name: module}.

    These are the linear modules, the head in any case, and the embedding.
    """
    modules = {}
    for path, spec in tree.walk(specs_with_head(cfg)):
        if path.endswith((".kernel", ".embedding")):
            for layer, name in enumerate(spec.module_names()):
                modules[name] = Module(
                    path,
                    layer if spec.stacked else None,
                    *spec.shape[-2:],
                    *spec.stack[1:],
                    parameter=spec.parameter and spec.parameter.format(layer),
                    embedding=path.endswith(".embedding"),
                )
    return modules


def places(chosen: Collection[str], modules: Mapping[str, Module]) -> dict[str, str]:
    """The name before the tensors of each module's adapter in PEFT's file, by module.

    PEFT wraps what holds the experts once for each of its parameters, the first one
    innermost.

    Args:
        chosen: The names of the modules that are adapted, in the model's order.
        modules: {name: module} of all that there are.

    Returns:
        {module's name: the name before its adapter's tensors}.
    """
    placed = {name: name for name in chosen}
    for name in chosen:
        if modules[name].experts is not None:
            holder = name.rpartition(".")[0]
            inside = [n for n in chosen if n.rpartition(".")[0] == holder]
            depth = len(inside) - 1 - inside.index(name)
            placed[name] = holder + ".base_layer" * depth
    return placed


def shortened(chosen: Set[str], everything: Set[str]) -> list[str]:
    """Names that select exactly `chosen`: the last component wherever that does.

    Args:
        chosen: The names of the modules to select.
        everything: The names of all modules, `chosen` included.

    Returns:
        The names, sorted.
    """
    left_out = {last(name) for name in everything - chosen}
    return sorted({n if last(n) in left_out else last(n) for n in chosen})


def targets(chosen: Set[str], everything: Set[str]) -> list[str] | str:
    """What a config's `target_modules` says, so that it selects exactly `chosen`.

    Args:
        chosen: The names of the modules to select.
        everything: The names of all modules that params can hold.

    Returns:
        `shortened`; in a model that sees, too, a regular expression, since its other
        parts have modules of the same names.
    """
    names = shortened(chosen, everything)
    if not any(name.startswith(f"{DECODER}.") for name in everything):
        return names
    within = rf"(?={re.escape(DECODER)}\.|lm_head)"
    return rf"{within}(.*\.)?({'|'.join(map(re.escape, names))})"


def beside(keys: Collection[str], cfg: ModelConfig) -> set[str]:
    """The keys of PEFT's file that adapt what is beside the language model.

    PEFT's "all-linear" reaches the other parts of a model that sees, which no text
    passes through. A warning tells of them.

    Args:
        keys: All keys of the file.
        cfg: The model's configuration.
    """
    if not cfg.sees:
        return set()
    own = tuple(f"{PREFIX}{name}." for name in (cfg.decoder, "lm_head"))
    left = {key for key in keys if not key.startswith(own)}
    if left:
        console.warn(
            f"adapter: {len(left)} tensors, {min(left)!r} among them, adapt what is "
            "beside the language model; they are left aside"
        )
    return left


def last(name: str) -> str:
    """The last component of a module's name, of a parameter "weight" the last two."""
    return ".".join(name.rsplit(".", 2)[-2 if name.endswith(".weight") else -1 :])
