"""Which layers see a window of tokens only, and how wide, as `config.json` says."""

from collections.abc import Sequence

from jaxpeft.models.hf_fields import Fields
from jaxpeft.models.spec import ModelConfig

LAYER_TYPES = {"full_attention": False, "sliding_attention": True}


def layer_types(fields: Fields, default: Sequence[bool]) -> list[bool]:
    """For each layer whether it sees a window of tokens only: `layer_types`.

    Args:
        fields: the reader over the model's `config.json`.
        default: the answer where the file has none, one entry for each layer.
    """
    given, names = fields.get("layer_types", None), list(LAYER_TYPES)
    if given is None:
        return list(default)
    if not isinstance(given, list) or not all(kind in names for kind in given):
        fields.problem("layer_types", "a list of " + " and ".join(names))
        return list(default)
    if len(given) != len(default):
        fields.problem("layer_types", f"a list of {len(default)}, one a layer")
        return list(default)
    return [LAYER_TYPES[name] for name in given]


def all_but_each(nth: int, layers: int) -> list[bool]:
    """For each layer whether it is none of the `nth`, twice `nth` and so on.

    Args:
        nth: of so many layers the last one differs.
        layers: how many there are.
    """
    return [(i + 1) % nth != 0 for i in range(layers)]


def windows(fields: Fields, local: Sequence[bool]) -> tuple[int | None, ...]:
    """How far back each layer sees: `sliding_window` tokens where it is local.

    Args:
        fields: the reader over the model's `config.json`.
        local: for each layer whether it sees a window of tokens only.

    Returns:
        For each layer the number of tokens, None for all; empty where no layer is
        local or the file has no window.
    """
    if fields.get("sliding_window", None) is None or not any(local):
        return ()
    size = fields.size("sliding_window")
    return tuple(size if here else None for here in local)


def check_types(fields: Fields, cfg: ModelConfig) -> None:
    """Checks that `layer_types`, where the file has it, says what the family does.

    Args:
        fields: the reader over the model's `config.json`, which collects the problem.
        cfg: the model, of a family that does not go by this field.
    """
    windows = cfg.windows or (None,) * cfg.num_hidden_layers
    local = [window is not None for window in windows]
    if layer_types(fields, local) != local:
        fields.refuse(
            "layer_types", "every layer of this family is as sliding_window says"
        )
