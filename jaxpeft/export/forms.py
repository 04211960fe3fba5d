"""A trained model written for other programs: as an adapter, or as a whole model."""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpeft import adapters, console, hf, kernel, models, quant, replacing, tree
from jaxpeft.assembly import trained
from jaxpeft.assembly.trained import Trained
from jaxpeft.errors import InputError
from jaxpeft.export import nearness
from jaxpeft.hf import bitsandbytes
from jaxpeft.hf.load import DTYPES
from jaxpeft.models import ModelConfig
from jaxpeft.quant import NF4
from jaxpeft.quant.nf4 import BLOCK

NF4_KINDS = ("nf4", "nf4_single")
# How far off the logits may be that were written, see `nearness.check`: many times what
# rounding the weights once brings about, and less than any other weights would.
NEAR = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
IN_4_BITS = 0.75

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

    Args:
        kind: a key of `FORMS`.
        out: the folder to write, absent or empty.
        dtype: the dtype of merged weights; None: as the run, or the model's folder,
            stores its base.
        run: the directory of a finished run.
        model: a model's folder or hub id, in place of a run.
        adapter: the folder of a PEFT adapter for `model`.

    Returns:
        A line about how near the result is, where it is no exact copy, else None.

    Raises:
        InputError: the form does not suit, or `out` is not empty or not writable.
        NumericsError: what was written computes something else than what was trained;
            then nothing of it is left.
    """
    target = new_folder(out)
    if model is not None:
        loaded = trained.load(None, model, adapter, stored_dtype(model), writes=False)
    else:
        loaded = trained.load(run, None, None, None, writes=False)
    was_there = target.exists()
    try:
        return FORMS[kind](loaded, target, dtype)
    except BaseException:
        # It was absent or empty: what is there now is ours, and not to be used.
        shutil.rmtree(target, ignore_errors=True)
        if was_there:
            target.mkdir(exist_ok=True)
        raise


def new_folder(out: str) -> Path:
    """The path of `--out`, which is absent, empty, or left by a killed export.

    Args:
        out: the value of `--out`.

    Raises:
        InputError: something is there already.
    """
    target = Path(out)
    found = list(target.iterdir()) if target.is_dir() else [target]
    if target.exists() and not all(map(replacing.is_leftover, found)):
        raise InputError(f"--out: {out!r} exists and is not empty; name a new folder")
    return target


def _peft(found: Trained, target: Path, dtype: str | None) -> None:
    _require_adapter(found, "peft")
    hf.save_adapter(found.params, target, found.base.cfg, base=found.base.name)
    _check_adapter(found, target)


def _vllm(found: Trained, target: Path, dtype: str | None) -> None:
    _require_adapter(found, "vllm")
    if found.base.cfg.num_labels:
        raise InputError(
            "--to: found 'vllm'; its adapters have no head of scores: use --to merged, "
            "whose model vLLM opens as a classifier or a reward model"
        )
    hf.save_for_vllm(found.params, target, found.base.cfg, base=found.base.name)
    _check_adapter(found, target)


def _merged(found: Trained, target: Path, dtype: str | None) -> str | None:
    if not kernel.nodes(found.params):
        return _write(lambda: found.params, found, target, dtype)
    merged = functools.partial(adapters.merge, found.params, dtype)
    return _write(merged, found, target, dtype, "merging changed")


def _bnb4(found: Trained, target: Path, dtype: str | None) -> str | None:
    dtype = dtype or found.base.dtype
    stored = functools.partial(_in_4_bits, found, dtype)
    limit = max(IN_4_BITS, NEAR[dtype])
    return _write(stored, found, target, dtype, "storing in 4 bits changed", limit)


# What `--to` can be: (trained model, folder, dtype) -> a line to say, or None.
FORMS: dict[str, Callable[[Trained, Path, str | None], str | None]] = {
    "peft": _peft,
    "vllm": _vllm,
    "merged": _merged,
    "bnb4": _bnb4,
}


def _write(
    make: Callable[[], Mapping[str, Any]],
    found: Trained,
    target: Path,
    dtype: str | None,
    compared: str | None = None,
    limit: float | None = None,
) -> str | None:
    """Writes a whole model; `compared` begins the line about how its logits changed."""
    base = found.base
    hf.save(make(), target, base.cfg, dtype=dtype, base=base.directory)
    base.copy_companions(target)
    # What is compared is what stands in the files, in the dtype that it has there, run
    # as the config.json beside it says.
    stored, cfg = dtype or base.dtype, models.config(target)
    written = hf.load(target, cfg, dtype=stored)
    before = _logits(found, found.params, base.cfg)
    after = _logits(found, written, cfg)
    nearness.check(before, after, NEAR[stored] if limit is None else limit, stored)
    return None if compared is None else nearness.told(compared, before, after)


def _check_adapter(found: Trained, target: Path) -> None:
    """Checks that the adapter in a folder computes over the base what was trained."""
    cfg = found.base.cfg
    written = hf.load_adapter(found.base.load(), target, cfg)
    before, after = (_logits(found, p, cfg) for p in (found.params, written))
    nearness.check(before, after, NEAR["float32"], "float32")


def _in_4_bits(found: Trained, dtype: str) -> dict[str, Any]:
    """The params with the layers' kernels in nf4, adapters merged into them first.

    Kernels in nf4 without an adapter stay as they are; those that `quantization_skip`
    names, or that blocks do not divide, stay whole.
    """
    bitsandbytes.check(found.base.cfg)
    section, params = found.base.section, adapters.parted(found.params)
    cfg = found.base.cfg.untied() if "lm_head" in params else found.base.cfg
    kind = section.quantization if section.quantization in NF4_KINDS else "nf4"
    whole, quantized = {}, {}
    nodes = dict(tree.walk(params))
    for path, spec in tree.walk(models.param_specs(cfg)):
        wanted = hf.is_quantized(path, spec, section.quantization_skip)
        if wanted and spec.shape[-2] % BLOCK == 0:
            quantized[path] = _quantized(nodes[path], kind, dtype)
            continue
        whole[path] = nodes[path]
        if wanted:
            console.warn(
                f"{path}: its input of {spec.shape[-2]} is no multiple of {BLOCK}; it "
                "is stored whole"
            )
    if not quantized:
        raise InputError(
            f"--to: found 'bnb4'; no kernel of the layers has an input that {BLOCK} "
            "divides: use --to merged"
        )
    # An adapter may change its module's bias, too, wherever its kernel goes.
    biases = adapters.merged_biases(params, dtype)
    merged = {**adapters.merge(whole, dtype), **biases, **quantized}
    return tree.replace(params, merged)


def _quantized(node: Any, kind: str, dtype: str) -> NF4:
    """A stack of kernels in 4 bits, made a layer at a time."""
    if isinstance(node, NF4):
        return node
    layers = []
    for layer in range(node.shape[0]):
        one = kernel.dense(kernel.layer(node, layer))
        made = quant.KERNELS[kind](one.astype(dtype), dtype)
        layers.append(jax.tree.map(np.asarray, made))
    return jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *layers)


def _require_adapter(found: Trained, kind: str) -> None:
    if not any(map(kernel.is_adapter, kernel.nodes(found.params).values())):
        raise InputError(
            f"--to: found {kind!r}; there is no adapter, the whole model was trained "
            "or --adapter is missing: use --to merged"
        )


def stored_dtype(model: str) -> str:
    """The dtype that a model's config.json names; float32 where it names none.

    Args:
        model: the model's folder or hub id.
    """
    content = models.config(hf.resolve(model)).hf
    named = str(content.get("dtype") or content.get("torch_dtype") or "float32")
    return named if named in DTYPES else "float32"


def _logits(found: Trained, params: Any, cfg: ModelConfig) -> np.ndarray:
    """The logits of the sample, in float32 so that only the weights differ."""
    tokens = np.asarray([found.base.tokenizer(SAMPLE)["input_ids"]], np.int32)
    cfg = dataclasses.replace(cfg, activation_dtype="float32")
    forward = jax.jit(lambda params, tokens: models.forward(params, tokens, cfg))
    return np.asarray(forward(params, tokens), np.float32)[0]


def combine(
    model: str,
    weighted: Sequence[tuple[str, float]],
    out: str,
    *,
    method: str = "cat",
    r: int | None = None,
) -> None:
    """Writes the weighted sum of PEFT adapters over one model as a PEFT adapter.

    Args:
        model: the model's folder or hub id.
        weighted: (folder, weight) of each adapter.
        out: the folder to write, absent or empty.
        method: see `adapters.combine`.
        r: see `adapters.combine`.

    Raises:
        InputError: `out` is not empty or not writable, or `adapters.combine` refuses
            the adapters.
    """
    target = new_folder(out)
    bare = trained.load(None, model, None, stored_dtype(model))
    adapted = [
        hf.load_adapter(bare.params, hf.resolve(path), bare.base.cfg)
        for path, _ in weighted
    ]
    weights = [weight for _, weight in weighted]
    together = adapters.combine(adapted, weights, method=method, r=r)
    hf.save_adapter(together, target, bare.base.cfg, base=bare.base.name)
