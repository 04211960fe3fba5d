"""Reading `config.json` strictly: every field is used, inert or refused."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxpeft.errors import InputError, suggest
from jaxpeft.models.spec import Rope

# Fields that say nothing about the mathematics of a forward pass. Those that name
# code (`auto_map`, `_attn_implementation_internal`) are never followed.
INERT = frozenset(
    """architectures auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id
    id2label is_decoder is_encoder_decoder label2id model_type name_or_path
    output_attentions output_hidden_states pad_token_id pretraining_tp problem_type
    return_dict task_specific_params tokenizer_class torch_dtype transformers_version
    unk_token_id use_cache""".split()
)
# Far above any model that exists: a size beyond it is a damaged file, and would be
# found out only by an allocation that takes the machine down.
LARGEST_SIZE = 2**24

ROPE_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
    "llama3": (
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
    ),
}
ROPE_OPTIONAL: dict[str, tuple[str, ...]] = {
    "yarn": (
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
    "longrope": ("attention_factor", "factor"),
}


class Fields:
    """A reader over `config.json` that collects every problem until `finish`."""

    def __init__(self, hf: Mapping[str, Any]):
        self.hf = hf
        self.seen: set[str] = set()
        self.problems: list[str] = []

    def _get(self, name: str, default: Any) -> Any:
        self.seen.add(name)
        value = self.hf.get(name)
        return default if value is None else value

    def _problem(self, name: str, wanted: str) -> None:
        found = repr(self.hf[name]) if name in self.hf else "nothing"
        self.problems.append(f"config.json: {name}: found {found}; it must be {wanted}")

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer; missing without a default is a problem."""
        value = self._get(name, default)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 0 < value <= LARGEST_SIZE:
            self._problem(name, f"a whole number from 1 to {LARGEST_SIZE}")
            return 1
        return value

    def number(self, name: str, default: float) -> float:
        """A number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._problem(name, "a number")
            return default
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            self._problem(name, "true or false")
            return default
        return value

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        """One of `choices`."""
        value = self._get(name, default)
        if value not in choices:
            self._problem(name, "one of " + ", ".join(choices))
            return default
        return value

    def refuse(self, name: str, remedy: str) -> None:
        """Records that the field's value cannot be handled."""
        self.seen.add(name)
        self.problems.append(f"config.json: {name}: found {self.hf[name]!r}; {remedy}")

    def rope(self) -> Rope:
        """The rotary embedding: `rope_parameters`, or `rope_theta` + `rope_scaling`."""
        theta = self.number("rope_theta", 10000.0)
        trained = self._get("max_position_embeddings", 2048)
        given = self._get("rope_parameters", None) or self._get("rope_scaling", None)
        self.seen |= {"rope_parameters", "rope_scaling"}
        if given is None:
            return Rope(theta=theta)
        if not isinstance(given, Mapping):
            self._problem("rope_parameters", "a mapping with `rope_type`")
            return Rope(theta=theta)
        kind = given.get("rope_type", given.get("type", "default"))
        if kind not in ROPE_FIELDS:
            self.problems.append(
                f"config.json: rope_type: found {kind!r}" + suggest(kind, ROPE_FIELDS)
            )
            return Rope(theta=theta)
        return self._scaled_rope(given, kind, theta, trained)

    def _scaled_rope(
        self, given: Mapping[str, Any], kind: Any, theta: float, trained: int
    ) -> Rope:
        values = {k: v for k, v in given.items() if v is not None}
        values.pop("rope_type", None)
        values.pop("type", None)
        theta = values.pop("rope_theta", theta)
        required = ROPE_FIELDS[kind]
        if "original_max_position_embeddings" in required:
            original = self._get("original_max_position_embeddings", None)
            if original is not None:
                values["original_max_position_embeddings"] = original
            values.setdefault("original_max_position_embeddings", trained)
        if kind == "longrope":
            original = values["original_max_position_embeddings"]
            values.setdefault("factor", trained / (original or trained))
        allowed = {*required, *ROPE_OPTIONAL.get(kind, ())}
        if kind in ("default", "linear", "dynamic"):
            values.pop("original_max_position_embeddings", None)
        for name in sorted(set(required) - set(values)):
            self.problems.append(
                f"config.json: rope_parameters.{name}: missing; "
                f"rope_type {kind!r} needs it"
            )
        for name in sorted(set(values) - allowed):
            self.problems.append(
                f"config.json: rope_parameters.{name}: not handled for rope_type "
                f"{kind!r}" + suggest(name, sorted(allowed))
            )
        chosen: dict[str, Any] = {}
        for name in sorted(allowed & set(values)):
            value = values[name]
            several = name in ("short_factor", "long_factor")
            numbers = value if several and isinstance(value, list) else [value]
            if not all(isinstance(n, int | float) for n in numbers):
                self.problems.append(
                    f"config.json: rope_parameters.{name}: found {value!r}; it must be "
                    + ("a list of numbers" if several else "a number")
                )
                return Rope()
            chosen[name] = tuple(numbers) if several else value
        return Rope(theta=float(theta), kind=kind, **chosen)

    def finish(self) -> None:
        """Raises InputError with all problems, unknown fields among them."""
        unknown = {
            name
            for name, value in self.hf.items()
            if name not in self.seen | INERT
            and value is not None
            and not name.startswith(("_", "unsloth_"))
        }
        if "quantization_config" in unknown:
            unknown.remove("quantization_config")
            self.problems.append(
                "config.json: quantization_config: the weights are stored quantized, "
                "which is not handled; point model.path at the unquantized model"
            )
        self.problems += [
            f"config.json: {name}: found {self.hf[name]!r}; this field is not handled "
            f"for model_type {self.hf.get('model_type')!r}, and ignoring it could "
            "change the model"
            for name in sorted(unknown)
        ]
        if self.problems:
            raise InputError(*self.problems)
