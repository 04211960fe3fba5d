"""Reading `config.json` strictly: every field is used, inert or refused."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpeft.errors import InputError, suggest
from jaxpeft.models import stored
from jaxpeft.models.spec import ModelConfig, Rope

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

LAYER_TYPES = {"full_attention": False, "sliding_attention": True}
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
    """A reader over `config.json` that collects every problem until `finish`.

    Args:
        hf: the content of the file.
        theta: the family's rope base, where the file has none.
        names: {the name that a field has here: the family's}, under which a file may
            have it, too.

    Attributes:
        names: as given.
        hf: the content, with the family's names replaced by those used here.
        original: the content as given.
        theta: as given.
        seen: the names of the fields that are used, or known to change nothing.
        problems: a sentence for each problem met so far.
    """

    def __init__(
        self,
        hf: Mapping[str, Any],
        theta: float = 10000.0,
        names: Mapping[str, str] | None = None,
    ):
        self.names = dict(names or {})
        ours = {theirs: name for name, theirs in self.names.items()}
        self.hf = {ours.get(name, name): value for name, value in hf.items()}
        self.original, self.theta = hf, theta
        self.seen: set[str] = set()
        self.problems: list[str] = []

    def _get(self, name: str, default: Any) -> Any:
        self.seen.add(name)
        value = self.hf.get(name)
        return default if value is None else value

    def _problem(self, name: str, wanted: str) -> None:
        value = repr(self.hf[name]) if name in self.hf else "nothing"
        self.problems.append(f"{self._key(name)}: found {value}; it must be {wanted}")

    def size(self, name: str, default: int | None = None) -> int:
        """The field's value, a positive integer.

        Args:
            name: of the field.
            default: its value where the file has none; None: then that is a problem.

        Returns:
            The value, or 1 where there is a problem.
        """
        value = self._get(name, default)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not 0 < value <= LARGEST_SIZE:
            self._problem(name, f"a whole number from 1 to {LARGEST_SIZE}")
            return 1
        return value

    def number(self, name: str, default: float, *, positive: bool = False) -> float:
        """The field's value, a finite number.

        Args:
            name: of the field.
            default: its value where the file has none or there is a problem.
            positive: it must be above 0; else 0 or more.
        """
        value = self._get(name, default)
        if not _is_number(value) or value < 0 or (positive and value == 0):
            self._problem(name, "a number above 0" if positive else "a number from 0")
            return default
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """The field's value, true or false; `default` if missing or malformed."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            self._problem(name, "true or false")
            return default
        return value

    def choice(self, name: str, default: str, choices: Sequence[str]) -> str:
        """The field's value, one of `choices`; `default` if missing or another."""
        value = self._get(name, default)
        if value not in choices:
            self._problem(name, "one of " + ", ".join(choices))
            return default
        return value

    def cap(self, name: str, default: float | None) -> float | None:
        """The field's value, a number above 0, or None where the file has null.

        Args:
            name: of the field.
            default: its value where the file lacks the field, which is not null.
        """
        self.seen.add(name)
        if self.hf.get(name, default) is None:
            return None
        return self.number(name, default or 1.0, positive=True)

    def bits(self, name: str, default: Sequence[bool]) -> list[bool]:
        """The field's value, a list of as many zeros and ones as `default` has.

        Args:
            name: of the field.
            default: its value where the file has none or there is a problem.

        Returns:
            The same as booleans.
        """
        value = self._get(name, list(default))
        sound = isinstance(value, list) and all(x in (0, 1) for x in value)
        if not sound or len(value) != len(default):
            self._problem(name, f"a list of {len(default)} zeros and ones")
            return list(default)
        return [bool(x) for x in value]

    def refuse(self, name: str, remedy: str) -> None:
        """Records that the field's value cannot be handled.

        Args:
            name: of the field, which the file has.
            remedy: what the message says after the value.
        """
        self.seen.add(name)
        self.problems.append(f"{self._key(name)}: found {self.hf[name]!r}; {remedy}")

    def _key(self, name: str) -> str:
        """A field as a message names it: as the file does."""
        return f"config.json: {self.names.get(name, name)}"

    def layer_types(self, default: Sequence[bool]) -> list[bool]:
        """For each layer whether it sees a window of tokens only: `layer_types`.

        Args:
            default: the answer where the file has none, one entry for each layer.
        """
        given, names = self._get("layer_types", None), list(LAYER_TYPES)
        if given is None:
            return list(default)
        if not isinstance(given, list) or not set(given) <= set(names):
            self._problem("layer_types", "a list of " + " and ".join(names))
            return list(default)
        if len(given) != len(default):
            self._problem("layer_types", f"a list of {len(default)}, one a layer")
            return list(default)
        return [LAYER_TYPES[name] for name in given]

    def windows(self, local: Sequence[bool]) -> tuple[int | None, ...]:
        """How far back each layer sees: `sliding_window` tokens where it is local.

        Args:
            local: for each layer whether it sees a window of tokens only.

        Returns:
            For each layer the number of tokens, None for all; empty where no layer is
            local or the file has no window.
        """
        if self._get("sliding_window", None) is None or not any(local):
            return ()
        size = self.size("sliding_window")
        return tuple(size if here else None for here in local)

    def rope(self, name: str | None = None) -> Rope:
        """The rotary embedding: `rope_parameters`, or `rope_theta` + `rope_scaling`.

        Args:
            name: of the entry, where the parameters differ between kinds of layers.
        """
        theta = self.number("rope_theta", self.theta, positive=True)
        key = "rope_parameters" if self.hf.get("rope_parameters") else "rope_scaling"
        given = self.hf.get(key) or None
        trained = self.hf.get("max_position_embeddings") or 2048
        trained = trained if _is_number(trained) else 2048  # `size` reports it
        self.seen |= {"rope_parameters", "rope_scaling", "partial_rotary_factor"}
        if name is not None and isinstance(given, Mapping) and name in given:
            given = given[name]
        if given is None:
            return Rope(theta=theta)
        if not isinstance(given, Mapping):
            self._problem(key, "a mapping with `rope_type`")
            return Rope(theta=theta)
        kind = given.get("rope_type", given.get("type", "default"))
        if not isinstance(kind, str) or kind not in ROPE_FIELDS:
            self.problems.append(
                f"config.json: rope_type: found {kind!r}" + suggest(kind, ROPE_FIELDS)
            )
            return Rope(theta=theta)
        return self._scaled_rope(given, kind, theta, trained)

    def rotary_share(self) -> float:
        """The part of each head that rotates: `partial_rotary_factor`, in (0, 1]."""
        nested = self.hf.get("rope_parameters")
        nested = nested if isinstance(nested, Mapping) else {}
        share = self.hf.get(
            "partial_rotary_factor", nested.get("partial_rotary_factor", 1.0)
        )
        if not _is_number(share) or not 0 < share <= 1:
            self._problem("partial_rotary_factor", "a number above 0, at most 1")
            return 1.0
        return float(share)

    def decoder(self, **own: Any) -> ModelConfig:
        """The model, from the fields that all families share and a family's `own`.

        Args:
            **own: fields of ModelConfig that the family reads by itself; they take the
                place of those that all share.

        Raises:
            InputError: with every problem that was met.
        """
        hidden, heads = self.size("hidden_size"), self.size("num_attention_heads")
        sound = not self.problems  # else what follows from the sizes says nothing
        for name in ("attention_dropout", "resid_pdrop", "embd_pdrop"):
            if name in self.hf and self.number(name, 0.0):
                self.refuse(name, "set it to 0.0: it is not implemented")
        head_dim = self.size("head_dim", max(hidden // heads, 1) if sound else 2)
        common: dict[str, Any] = {
            "model_type": self.hf["model_type"],
            "vocab_size": self.size("vocab_size"),
            "hidden_size": hidden,
            "num_hidden_layers": self.size("num_hidden_layers"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.size("num_key_value_heads", heads),
            "head_dim": head_dim,
            "max_position_embeddings": self.size("max_position_embeddings", 2048),
            "rms_norm_eps": self.number("rms_norm_eps", 1e-6),
            "tie_word_embeddings": self.flag("tie_word_embeddings", False),
            "initializer_range": self.number("initializer_range", 0.02),
            "hf": dict(self.original),
        }
        if "intermediate_size" not in own:
            common["intermediate_size"] = self.size("intermediate_size")
        if "rope" not in own:
            common["rope"] = self.rope()
        cfg = ModelConfig(**{**common, **own})
        self._consistent(cfg, sound)
        self.finish()
        return cfg

    def _consistent(self, cfg: ModelConfig, sound: bool) -> None:
        if sound and cfg.num_attention_heads % cfg.num_key_value_heads:
            self.refuse(
                "num_key_value_heads",
                f"it must divide num_attention_heads {cfg.num_attention_heads}",
            )
        rotary = cfg.rotary_dim or cfg.head_dim
        if rotary % 2 and cfg.position_embedding == "rotary":
            self.problems.append(
                f"config.json: head_dim is {cfg.head_dim}; rotary position embeddings "
                "need an even number of its elements"
            )
        for name in ("short_factor", "long_factor"):
            divisors = getattr(cfg.rope, name)
            if divisors and sound and len(divisors) != rotary // 2:
                self.problems.append(
                    f"config.json: rope_parameters.{name}: found {len(divisors)} "
                    f"numbers; half of what rotates of a head, {rotary // 2}, are "
                    "needed"
                )

    def _scaled_rope(
        self, given: Mapping[str, Any], kind: Any, theta: float, trained: int
    ) -> Rope:
        values = {k: v for k, v in given.items() if v is not None}
        for known in ("rope_type", "type", "partial_rotary_factor"):
            values.pop(known, None)
        theta = values.get("rope_theta", theta)
        required = ROPE_FIELDS[kind]
        if "original_max_position_embeddings" in required:
            original = self._get("original_max_position_embeddings", None)
            if original is not None:
                values["original_max_position_embeddings"] = original
            values.setdefault("original_max_position_embeddings", trained)
        if kind == "longrope":
            original = values["original_max_position_embeddings"]
            sound = _is_number(original) and original > 0
            values.setdefault("factor", trained / original if sound else 1.0)
        allowed = {"rope_theta", *required, *ROPE_OPTIONAL.get(kind, ())}
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
            wanted = _wanted(name, value)
            if wanted:
                self.problems.append(
                    f"config.json: rope_parameters.{name}: found {value!r}; it must be "
                    f"{wanted}"
                )
                return Rope()
            chosen[name] = tuple(value) if isinstance(value, list) else value
        chosen.pop("rope_theta", None)
        return Rope(theta=float(theta), kind=kind, **chosen)

    def finish(self) -> None:
        """Ends the reading: fields that nobody asked for are problems as well.

        Raises:
            InputError: with all problems, where there are any.
        """
        unknown = {
            name
            for name, value in self.hf.items()
            if name not in self.seen | INERT
            and value is not None
            and not name.startswith(("_", "unsloth_"))
        }
        unknown.discard("quantization_config")
        try:
            stored.quantization(self.hf)
        except InputError as error:
            self.problems += error.problems
        self.problems += [
            f"config.json: {name}: found {self.hf[name]!r}; this field is not handled "
            f"for model_type {self.hf.get('model_type')!r}, and ignoring it could "
            "change the model"
            for name in sorted(unknown)
        ]
        if self.problems:
            raise InputError(*self.problems)


def _is_number(value: Any) -> bool:
    """Whether `value` is a finite number and no boolean."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _wanted(name: str, value: Any) -> str:
    """What a rope parameter must be, where `value` is not that; else empty."""
    if name == "truncate":
        return "" if isinstance(value, bool) else "true or false"
    if name in ("short_factor", "long_factor"):
        sound = isinstance(value, list) and all(_is_number(n) and n > 0 for n in value)
        return "" if sound else "a list of numbers above 0"
    may_be_zero = name in ("mscale", "mscale_all_dim")
    sound = _is_number(value) and (value > 0 or (may_be_zero and value == 0))
    return "" if sound else "a number" if may_be_zero else "a number above 0"
