"""What `config.json` says of rotary embeddings, in either of its spellings."""

from collections.abc import Mapping
from typing import Any

from jaxpeft import console
from jaxpeft.errors import suggest
from jaxpeft.models.hf_fields import Fields, is_number
from jaxpeft.models.hf_layers import LAYER_TYPES
from jaxpeft.models.spec import Rope

PARAMETERS, SCALING = "rope_parameters", "rope_scaling"
SHARE = "partial_rotary_factor"
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


def rope(
    fields: Fields,
    name: str | None = None,
    *,
    theta: float | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Rope:
    """The rotary embedding: `rope_parameters`, or `rope_theta` + `rope_scaling`.

    Where a file has both they must say the same.

    Args:
        fields: the reader over the model's `config.json`.
        name: of the entry, where the parameters differ between kinds of layers.
            `rope_scaling` is that of "full_attention" then.
        theta: the base where the parameters name none; None: the file's `rope_theta`,
            or the family's.
        aliases: {what the family's files call a kind of scaling: its name here}.
    """
    base = fields.number("rope_theta", fields.theta, positive=True)
    theta = base if theta is None else theta
    fields.seen |= {"rope_parameters", "rope_scaling"}
    parameters, scaling = (fields.hf.get(k) or None for k in (PARAMETERS, SCALING))
    if isinstance(parameters, Mapping) and name is not None:
        if not set(parameters) & set(LAYER_TYPES):
            fields.problem(PARAMETERS, "a mapping with an entry for each kind of layer")
            return Rope(theta=theta)
        parameters = parameters.get(name)
    if name not in (None, "full_attention"):
        scaling = None
    aliases = aliases or {}
    found = Rope(theta=theta)
    if parameters is not None:
        found = _read(fields, PARAMETERS, parameters, theta, aliases)
    if scaling is not None:
        other = _read(fields, SCALING, scaling, found.theta, aliases)
        if parameters is not None and other != found:
            fields.refuse(SCALING, "rope_parameters says otherwise; remove one of them")
        return other
    return found


def _read(
    fields: Fields, key: str, given: Any, theta: float, aliases: Mapping[str, str]
) -> Rope:
    """One of the two mappings, `given` under `key`."""
    if not isinstance(given, Mapping):
        fields.problem(key, "a mapping with `rope_type`")
        return Rope(theta=theta)
    kind = given.get("rope_type", given.get("type", "default"))
    kind = aliases.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in ROPE_FIELDS:
        fields.problems.append(
            f"config.json: rope_type: found {kind!r}" + suggest(kind, ROPE_FIELDS)
        )
        return Rope(theta=theta)
    trained = fields.get("max_position_embeddings", 2048)
    trained = trained if is_number(trained) else 2048  # `size` reports it
    return _scaled_rope(fields, given, kind, theta, trained)


def rotary_share(fields: Fields) -> float:
    """The part of each head that rotates: `partial_rotary_factor`, in (0, 1].

    Args:
        fields: the reader over the model's `config.json`.
    """
    share = fields.get(SHARE, 1.0)
    for key in (SCALING, PARAMETERS):
        nested = fields.hf.get(key)
        share = nested.get(SHARE, share) if isinstance(nested, Mapping) else share
    if not is_number(share) or not 0 < share <= 1:
        fields.problem(SHARE, "a number above 0, at most 1")
        return 1.0
    return float(share)


def _scaled_rope(
    fields: Fields, given: Mapping[str, Any], kind: Any, theta: float, trained: int
) -> Rope:
    values = {k: v for k, v in given.items() if v is not None}
    for known in ("rope_type", "type"):
        values.pop(known, None)
    if SHARE in fields.seen or values.get(SHARE) == 1:
        values.pop(SHARE, None)
    if values.pop("attn_factor", None) is not None:
        console.remark(
            "config.json: attn_factor: not read, as in transformers; what multiplies "
            "cosines and sines is attention_factor"
        )
    theta = values.get("rope_theta", theta)
    required = ROPE_FIELDS[kind]
    if "original_max_position_embeddings" in required:
        original = fields.get("original_max_position_embeddings", None)
        if original is not None:
            values["original_max_position_embeddings"] = original
        values.setdefault("original_max_position_embeddings", trained)
    if kind == "longrope":
        original = values["original_max_position_embeddings"]
        sound = is_number(original) and original > 0
        values.setdefault("factor", trained / original if sound else 1.0)
    allowed = {"rope_theta", *required, *ROPE_OPTIONAL.get(kind, ())}
    if kind in ("default", "linear", "dynamic"):
        values.pop("original_max_position_embeddings", None)
    for name in sorted(set(required) - set(values)):
        fields.problems.append(
            f"config.json: rope_parameters.{name}: missing; rope_type {kind!r} needs it"
        )
    for name in sorted(set(values) - allowed):
        fields.problems.append(
            f"config.json: rope_parameters.{name}: not handled for rope_type "
            f"{kind!r}" + suggest(name, sorted(allowed))
        )
    chosen: dict[str, Any] = {}
    for name in sorted(allowed & set(values)):
        value = values[name]
        wanted = _wanted(name, value)
        if wanted:
            fields.problems.append(
                f"config.json: rope_parameters.{name}: found {value!r}; it must be "
                f"{wanted}"
            )
            return Rope()
        chosen[name] = tuple(value) if isinstance(value, list) else value
    chosen.pop("rope_theta", None)
    return Rope(theta=float(theta), kind=kind, **chosen)


def _wanted(name: str, value: Any) -> str:
    """What a rope parameter must be, where `value` is not that; else empty."""
    if name == "truncate":
        return "" if isinstance(value, bool) else "true or false"
    if name in ("short_factor", "long_factor"):
        sound = isinstance(value, list) and all(is_number(n) and n > 0 for n in value)
        return "" if sound else "a list of numbers above 0"
    may_be_zero = name in ("mscale", "mscale_all_dim")
    sound = is_number(value) and (value > 0 or (may_be_zero and value == 0))
    return "" if sound else "a number" if may_be_zero else "a number above 0"
