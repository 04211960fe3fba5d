"""A trained model written for other programs: as an adapter, or as a whole model."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpeft import adapters, hf, kernel, models, trained
from jaxpeft.errors import InputError
from jaxpeft.hf.load import DTYPES
from jaxpeft.trained import Trained

# On this text a merged model is compared with what it was merged from.
SAMPLE = (
    "What will the weather be like in Lisbon tomorrow? Sunny in the morning, with a "
    "light wind from the west; 21 degrees at most, and rain (3 mm) after 18:30."
)


def export(
    kind: str,
    out: str,
    dtype: str | None = None,
    *,
    run: str | None = None,
    model: str | None = None,
    adapter: str | None = None,
) -> str | None:
    """Writes a run, or a model and its adapter, in one of `FORMS` into a new folder.

    dtype: of merged weights; None: as the run, or the model's folder, stores its base.
    Returns a line about how near the result is, where it is no exact copy. Raises
    InputError where the form does not suit, or `out` is not empty or not writable.
    """
    target = new_folder(out)
    if model is not None:
        found = trained.load(None, model, adapter, _stored(model))
    else:
        found = trained.load(run, None, None, None)
    return FORMS[kind](found, target, dtype)


def new_folder(out: str) -> Path:
    """The path of `--out`; raises InputError where something is there already."""
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--out: {out!r} exists and is not empty; name a new folder")
    return target


def _peft(found: Trained, target: Path, dtype: str | None) -> None:
    _require_adapter(found, "peft")
    hf.save_adapter(found.params, target, found.base.cfg, base=found.base.section.path)


def _vllm(found: Trained, target: Path, dtype: str | None) -> None:
    _require_adapter(found, "vllm")
    hf.save_for_vllm(found.params, target, found.base.cfg, base=found.base.section.path)


def _merged(found: Trained, target: Path, dtype: str | None) -> str | None:
    base = found.base
    if not kernel.nodes(found.params):
        hf.save(found.params, target, base.cfg, dtype=dtype)
        base.copy_companions(target)
        return None
    before = _logits(found, found.params)
    merged = adapters.merge(found.params, dtype)
    hf.save(merged, target, base.cfg, dtype=dtype)
    base.copy_companions(target)
    # What is compared is what stands in the files, in the dtype that it has there.
    after = _logits(found, hf.load(target, base.cfg, dtype=dtype or base.dtype))
    return _difference(before, after)


# What `--to` can be: (trained model, folder, dtype) -> a line to say, or None.
FORMS: dict[str, Callable[[Trained, Path, str | None], str | None]] = {
    "peft": _peft,
    "vllm": _vllm,
    "merged": _merged,
}


def _require_adapter(found: Trained, kind: str) -> None:
    nodes = kernel.nodes(found.params).values()
    if not any(hasattr(node, "TRAINABLE") for node in nodes):
        raise InputError(
            f"--to: found {kind!r}; there is no adapter, the whole model was trained "
            "or --adapter is missing: use --to merged"
        )


def _stored(model: str) -> str:
    """The dtype that a model's config.json names; float32 where it names none."""
    content = models.config(hf.resolve(model)).hf
    named = str(content.get("dtype") or content.get("torch_dtype") or "float32")
    return named if named in DTYPES else "float32"


def _logits(found: Trained, params: Any) -> np.ndarray:
    """Those of the sample, computed in float32 so that only the weights differ."""
    tokens = np.asarray([found.base.tokenizer(SAMPLE)["input_ids"]], np.int32)
    cfg = dataclasses.replace(found.base.cfg, activation_dtype="float32")
    forward = jax.jit(lambda params, tokens: models.forward(params, tokens, cfg))
    return np.asarray(forward(params, tokens), np.float32)[0]


def _difference(before: np.ndarray, after: np.ndarray) -> str:
    changes = np.abs(after - before)
    same = np.mean(before.argmax(-1) == after.argmax(-1))
    return (
        f"merging changed the logits by at most {changes.max():.2g}, on average "
        f"{changes.mean():.2g}; they reach {np.abs(before).max():.3g}, and the most "
        f"likely token is the same in {same:.0%} of {len(before)} places"
    )


def combine(
    model: str,
    weighted: Sequence[tuple[str, float]],
    out: str,
    *,
    method: str = "cat",
    r: int | None = None,
) -> None:
    """Writes the weighted sum of PEFT adapters over one model as a PEFT adapter.

    weighted: (folder, weight) of each. Otherwise as `adapters.combine`, whose errors
    it raises, and InputError for `out` as `export` does.
    """
    target = new_folder(out)
    bare = trained.load(None, model, None, _stored(model))
    adapted = [
        hf.load_adapter(bare.params, hf.resolve(path), bare.base.cfg)
        for path, _ in weighted
    ]
    weights = [weight for _, weight in weighted]
    together = adapters.combine(adapted, weights, method=method, r=r)
    hf.save_adapter(together, target, bare.base.cfg, base=model)
