"""adapter_config.json: what PEFT's fields mean for each module of a model."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxpeft import console
from jaxpeft.adapters.targets import by_pattern
from jaxpeft.errors import InputError
from jaxpeft.models.spec import ModelConfig

SCORES = "SEQ_CLS"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_CONFIG = 10_000_000  # bytes; names of all modules of a large model fit

# Fields without influence on what a loaded LoRA computes.
INERT = frozenset(
    """auto_mapping base_model_name_or_path corda_config
    eva_config fan_in_fan_out inference_mode loftq_config
    lora_ga_config megatron_config megatron_core peft_version qalora_group_size
    revision runtime_config task_type""".split()
)
# Fields that change what it computes, handled only at a value that leaves it alone.
REFUSED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
# Initialisations that leave the base as it is. The others (PiSSA, OLoRA, LoftQ, ...)
# change its weights, so that such an adapter alone says nothing about the base.
BIASES = ("none", "all", "lora_only")
INITS = (None, True, False, "gaussian", "eva", "mica", "orthogonal")


@dataclass(frozen=True)
class AdapterConfig:
    """The fields of a LoRA's adapter_config.json, under PEFT's names and defaults.

    Module names are Hugging Face's, in full. A list of names means what ends with one
    of them; a single text is a regular expression for the whole name.

    Attributes:
        r: The rank.
        lora_alpha: The scale times the rank, or with `use_rslora` times its square
            root.
        lora_dropout: The probability with which entries of the input are zeroed in
            training.
        use_rslora: Whether the scale is alpha / sqrt(r) in place of alpha / r.
        use_dora: Whether it is a DoRA.
        target_modules: The linear modules that carry the adapter, or "all-linear";
            None: the file's keys say it.
        target_parameters: The parameters in no linear module that carry it.
        exclude_modules: Modules that carry none, whatever `target_modules` says.
        layers_to_transform: The numbers of the layers that carry it; None: all.
        layers_pattern: Regular expressions for what stands before a layer's number in a
            module's name; None: anything.
        rank_pattern: {regular expression: the `r` of the modules whose name ends so}.
        alpha_pattern: {regular expression: the `lora_alpha` of such modules}.
        modules_to_save: The modules whose weights the folder holds as a whole.
        bias: Which biases it holds: "none", "all" or "lora_only".
        trainable_token_indices: The tokens whose vectors it holds, of the embedding, or
            by the module's name.
        ensure_weight_tying: Whether an embedding that it holds, or its tokens, stay one
            with the head that shares them.
    """

    r: int = 8
    lora_alpha: float = 8
    lora_dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: list[str] | str | None = None
    target_parameters: list[str] | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    modules_to_save: list[str] = field(default_factory=list)
    bias: str = "none"
    trainable_token_indices: list[int] | Mapping[str, list[int]] | None = None
    ensure_weight_tying: bool = False

    def targets(self, module: str) -> bool:
        """Whether a linear module of this full name carries the adapter, as in PEFT."""
        if self.exclude_modules and _matches(self.exclude_modules, module):
            return False
        if self.saves(module):
            return False
        wanted = self.target_modules
        if self.is_all_linear:
            return module != "lm_head"
        if wanted is None or not _matches(wanted, module):
            return False
        # PEFT lets a regular expression decide alone.
        return isinstance(wanted, str) or self._in_layers(module)

    def saves(self, module: str) -> bool:
        """Whether the adapter holds this module's weights as a whole, as in PEFT."""
        return any(module.endswith(name) for name in self.modules_to_save)

    def tokens(self, names: Mapping[str, str]) -> dict[str, list[int]]:
        """The tokens whose vectors the adapter holds, by the places of `names`.

        Args:
            names: {place: module name}, the embedding's first.

        Raises:
            InputError: A module that is named is none of them.
        """
        given = self.trainable_token_indices
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            return {next(iter(names)): list(given)}
        chosen = {}
        for entry, indices in given.items():
            places = [place for place, name in names.items() if name.endswith(entry)]
            if not places:
                raise InputError(
                    f"{CONFIG}: trainable_token_indices: {entry!r} is neither of "
                    f"{' and '.join(map(repr, names.values()))}; set model.path to "
                    "the base that the adapter was made for"
                )
            chosen[places[0]] = list(indices)
        return chosen

    @property
    def is_all_linear(self) -> bool:
        """Whether the adapter targets every linear module, so no embedding."""
        return str(self.target_modules).lower() == "all-linear"

    def targets_parameter(self, parameter: str) -> bool:
        """Whether a parameter of this full name carries the adapter."""
        return _matches(self.target_parameters or [], parameter)

    def rank(self, module: str) -> int:
        """The rank of a module's adapter."""
        return by_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """The factor before `B @ A` in a module."""
        alpha = by_pattern(self.alpha_pattern, module, self.lora_alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def _in_layers(self, module: str) -> bool:
        layers = self.layers_to_transform
        if layers is None or layers == []:
            return True
        patterns = self.layers_pattern or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            match = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
            if match:
                return int(match[1]) in (
                    [layers] if isinstance(layers, int) else layers
                )
        return False


def read(directory: Path) -> AdapterConfig:
    """The config of a LoRA's folder.

    Missing fields get PEFT's defaults; unknown ones warn, as in PEFT.

    Args:
        directory: The adapter's folder.

    Raises:
        InputError: Where the config is missing or malformed, or asks for what is not
            handled.
    """
    return _parse(directory / CONFIG, content(directory))


def content(directory: Path) -> dict[str, Any]:
    """The content of an adapter_config.json, of whatever kind its adapter is.

    Args:
        directory: The adapter's folder.

    Raises:
        InputError: Where the file is missing or no JSON object.
    """
    path = directory / CONFIG
    if not path.is_file():
        inner = sorted(p.parent.name for p in directory.glob(f"*/{CONFIG}"))
        hint = f"; there is one in {', '.join(map(repr, inner[:3]))}" if inner else ""
        raise InputError(
            f"{path}: missing{hint}; give the folder of a PEFT adapter, which holds "
            f"{CONFIG} and {WEIGHTS}"
        )
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"larger than {LARGEST_CONFIG} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not valid JSON ({error}); restore the file"
        ) from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds no JSON object; restore the file")
    return config


def task_type(cfg: ModelConfig) -> str:
    """What PEFT calls the task of a model: which of its classes opens the adapter.

    Args:
        cfg: The model's configuration.
    """
    return SCORES if cfg.num_labels else "CAUSAL_LM"


def beside(path: Path, content: Mapping[str, Any]) -> AdapterConfig:
    """What a config of any method says of base weights that the folder holds.

    Args:
        path: The config's file, for messages.
        content: What it holds.

    Returns:
        A config with `modules_to_save` and `bias` alone.

    Raises:
        InputError: Where one of the two makes no sense.
    """
    values = {
        name: content[name]
        for name in ("modules_to_save", "bias")
        if content.get(name) is not None
    }
    problems = [
        f"{path}: {name}: found {value!r}; it must be {VALID[name][1]}"
        for name, value in values.items()
        if not VALID[name][0](value)
    ]
    if problems:
        raise InputError(*problems)
    return AdapterConfig(**values)


def _parse(path: Path, content: Mapping[str, Any]) -> AdapterConfig:
    problems = [f"{path}: {problem}" for problem in _refusals(content)]
    own = AdapterConfig.__dataclass_fields__
    # null stands for the default, as PEFT itself writes it.
    values = {k: v for k, v in content.items() if k in own and v is not None}
    for name, value in values.items():
        valid, wanted = VALID[name]
        if not valid(value):
            problems.append(f"{path}: {name}: found {value!r}; it must be {wanted}")
    if problems:
        raise InputError(*problems)
    known = {"peft_type", "init_lora_weights", *own, *INERT, *REFUSED}
    for name in sorted(set(content) - known):
        if content[name]:
            console.warn(f"{path}: {name}: unknown and ignored")
    return AdapterConfig(**values)


def _refusals(content: Mapping[str, Any]) -> Iterable[str]:
    kind = content.get("peft_type")
    if kind != "LORA":
        yield (
            f"peft_type: found {kind!r}; handled are LORA, IA3, VERA, OFT, "
            "PROMPT_TUNING, PREFIX_TUNING and, of ours, BOTTLENECK and BITFIT"
        )
    for name in REFUSED:
        if content.get(name):
            yield (
                f"{name}: found {content[name]!r}, which is not handled; merge the "
                "adapter into its model with PEFT's merge_and_unload instead"
            )
    init = content.get("init_lora_weights")
    if init not in INITS:
        yield (
            f"init_lora_weights: found {init!r}, which changes the base's weights; "
            "save the adapter with PEFT's path_initial_model_for_weight_conversion"
        )


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _is_regex(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError, RecursionError):
        return False
    return isinstance(value, str)


def _is_whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_tokens(value: Any) -> bool:
    lists = value.values() if isinstance(value, dict) else [value]
    return all(
        isinstance(numbers, list) and all(_is_whole(n, 0) for n in numbers)
        for numbers in lists
    )


def _is_patterns(value: Any, valid: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_regex(key) and valid(number) for key, number in value.items()
    )


VALID = {
    "r": (lambda v: _is_whole(v, 1), "a whole number from 1"),
    "lora_alpha": (_is_number, "a number"),
    "lora_dropout": (lambda v: _is_number(v) and 0 <= v < 1, "a number in [0, 1)"),
    "use_rslora": (lambda v: isinstance(v, bool), "true or false"),
    "use_dora": (lambda v: isinstance(v, bool), "true or false"),
    "target_modules": (
        lambda v: _is_names(v) or _is_regex(v),
        "a list of names or a regular expression",
    ),
    "target_parameters": (_is_names, "a list of names"),
    "exclude_modules": (
        lambda v: _is_names(v) or _is_regex(v),
        "a list of names or a regular expression",
    ),
    "layers_to_transform": (
        lambda v: all(_is_whole(i, 0) for i in (v if isinstance(v, list) else [v])),
        "a whole number or a list of them",
    ),
    "modules_to_save": (_is_names, "a list of names"),
    "trainable_token_indices": (
        _is_tokens,
        "a list of whole numbers from 0, or a mapping of such lists by module",
    ),
    "ensure_weight_tying": (lambda v: isinstance(v, bool), "true or false"),
    "bias": (lambda v: v in BIASES, f"one of {', '.join(BIASES)}"),
    "layers_pattern": (
        lambda v: all(_is_regex(p) for p in (v if isinstance(v, list) else [v])),
        "a regular expression or a list of them",
    ),
    "rank_pattern": (
        lambda v: _is_patterns(v, lambda n: _is_whole(n, 1)),
        "a mapping of regular expressions to whole numbers from 1",
    ),
    "alpha_pattern": (
        lambda v: _is_patterns(v, _is_number),
        "a mapping of regular expressions to numbers",
    ),
}


def _matches(wanted: list[str] | str, module: str) -> bool:
    if isinstance(wanted, str):
        return bool(re.fullmatch(wanted, module))
    return any(module == entry or module.endswith(f".{entry}") for entry in wanted)
