"""Figures of a run as words: names that a reader knows, numbers with their units."""

from collections.abc import Mapping
from typing import Any

from jaxpeft.config import strict_yaml

# Keys of summary.json: what they are called, and how their numbers are written.
FIGURES = {
    "steps": ("steps taken", "count"),
    "seconds": ("time", "seconds"),
    "tokens": ("tokens trained on", "count"),
    "tokens_per_second": ("speed", "tokens/s"),
    "peak_memory_bytes": ("peak memory", "bytes"),
    "peak_memory_of": ("peak memory is that of", ""),
    "parameters": ("parameters", "count"),
    "trainable": ("trainable parameters", "count"),
    "train_loss": ("training loss at the end", "loss"),
    "eval_loss_before": ("evaluation loss before", "loss"),
    "eval_loss_after": ("evaluation loss after", "loss"),
    "eval_loss": ("evaluation loss", "loss"),
    "eval_accuracy": ("token accuracy", "score"),
    "best_eval_loss": ("best evaluation loss", "loss"),
    "best_step": ("step of the best evaluation", "count"),
    "stopped_early": ("stopped early", ""),
}


def rows(
    figures: Mapping[str, Any], of_loss: str = "nats per token"
) -> list[tuple[str, str]]:
    """The names and values of all figures, in words; nested ones have dotted names.

    Args:
        figures: by their keys.
        of_loss: what stands behind a loss.
    """
    pairs = []
    for key, value in figures.items():
        if isinstance(value, Mapping):
            pairs += [(f"{key}.{name}", text) for name, text in rows(value, of_loss)]
        else:
            name, unit = FIGURES.get(key, (key.replace("_", " "), ""))
            pairs.append((name, figure(value, unit, of_loss)))
    return pairs


def figure(value: Any, unit: str, of_loss: str = "") -> str:
    """A value in words, with its unit; "none" for null.

    Args:
        value: what JSON can hold.
        unit: "bytes", "seconds", "loss", "score" or "count"; any other stands behind
            the number as it is, "" for none.
        of_loss: what stands behind a loss.
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(figure(item, unit, of_loss) for item in value)
    if not isinstance(value, int | float):
        return str(value)
    known = {"bytes": size, "seconds": duration, "count": _count, "score": _score}
    if unit == "loss":
        return f"{value:.4f} {of_loss}".strip()
    if unit in known:
        return known[unit](value)
    if not unit:
        return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
    return f"{_count(value)} {unit}"


def choice(value: Any) -> str:
    """A value of a configuration's key as YAML in one line, a number with four digits.

    Args:
        value: what YAML can hold.
    """
    is_float = isinstance(value, float)
    return f"{value:.4g}" if is_float else strict_yaml.dump_scalar(value)


def axis(values: Any) -> str:
    """What a sweep gives a key: its values, or the space that a search draws from."""
    if not isinstance(values, Mapping):
        return ", ".join(map(choice, values))
    if "values" in values:
        return f"one of {', '.join(map(choice, values['values']))}"
    low, high = (choice(values.get(end)) for end in ("low", "high"))
    return f"{low} to {high}{' (log)' if values.get('kind') == 'log' else ''}"


def size(count: float) -> str:
    """Bytes in the largest unit that leaves at least one of it."""
    for unit, bytes_each in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= bytes_each:
            return f"{count / bytes_each:,.1f} {unit}"
    return f"{count:,.0f} B"


def duration(seconds: float) -> str:
    """Seconds as a person says them: 48.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _score(value: float) -> str:
    return f"{value:.4f}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"
