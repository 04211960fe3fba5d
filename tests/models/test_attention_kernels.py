"""Attention by target: each implementation beside a softmax in float64, and compiled.

Kernels run in interpret mode here; what GPUs and TPUs run, their own compilers say.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxpeft import hardware
from jaxpeft.devices import determinism, sharding, topologies
from jaxpeft.models import attention
from jaxpeft.models.attention import (
    EVERYTHING,
    Scores,
    attend,
    blockwise,
    loops,
    splash,
    triton,
)
from jaxpeft.models.attention.scores import first_keys
from jaxpeft.models.kept import POLICIES
from jaxpeft.plan import vendor

H100 = hardware.Target("gpu", "NVIDIA H100 80GB HBM3", 1)
V5E = hardware.Target("tpu", "TPU v5 lite", 1)


def arrays(seq, heads, kv_heads, dim, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = [(2, seq, n, dim) for n in (heads, kv_heads, kv_heads, heads)]
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def segments_of(seq):
    """Three examples, then padding; the second row is one example."""
    cuts = [seq // 5, seq // 2, seq - seq // 8]
    first = np.searchsorted(cuts, np.arange(seq), side="right") + 1
    return np.stack([np.where(first == 4, 0, first), np.ones(seq)]).astype(np.int32)


def mask_of(seq, segments, window):
    back = np.arange(seq)[:, None] - np.arange(seq)
    mask = np.broadcast_to((back >= 0) & (back < (window or seq)), (2, seq, seq))
    if segments is not None:
        mask = mask & (segments[:, :, None] == segments[:, None, :])
    return mask


def reference(q, k, v, dout, mask, scale, softcap):
    """The output and gradients by torch in float64, from all scores at once."""
    q, k, v, dout = (torch.from_numpy(x).double() for x in (q, k, v, dout))
    for x in (q, k, v):
        x.requires_grad_()
    many = [x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v)]
    logits = torch.einsum("bqhd,bkhd->bhqk", q, many[0]) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~torch.from_numpy(mask.copy())[:, None], -torch.inf)
    out = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), many[1])
    out.backward(dout)
    return [out.detach().numpy()] + [x.grad.numpy() for x in (q, k, v)]


def in_loops(q, k, v, segments, scores):
    grouped = blockwise.group(q, k.shape[2])
    keys, values = (x.transpose(0, 2, 1, 3) for x in (k, v))
    first = first_keys(segments, scores.window, q.shape[1])
    return blockwise.ungroup(loops.attend(grouped, keys, values, first, None, scores))


def interpreted(kernel):
    return lambda *operands: kernel.attend(*operands, interpret=True)


WAYS = {
    "loops": in_loops,
    "triton": interpreted(triton),
    "splash": interpreted(splash),
}
# (seq, heads, key heads, dim, packed, window, whether it is an array, soft cap)
CASES = {
    "packed, a window of this layer, capped": (150, 4, 1, 16, True, 37, True, 5.0),
    "whole, a width of its own": (130, 2, 2, 20, False, None, False, None),
    "one window for all": (160, 2, 1, 16, False, 20, False, None),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.slow
def test_each_implementation_is_the_softmax(way, case, monkeypatch):
    monkeypatch.setattr(loops, "QUERIES", 32)
    monkeypatch.setattr(loops, "KEYS", 64)
    monkeypatch.setattr(triton, "SIZES", {32: ((64, 32, 4), (32, 64, 4), (32, 32, 4))})
    seq, heads, kv_heads, dim, packed, window, traced, softcap = CASES[case]
    q, k, v, dout = arrays(seq, heads, kv_heads, dim)
    segments = segments_of(seq) if packed else None

    @jax.jit
    def found(q, k, v, dout, segments, width):
        scores = Scores(0.3, softcap, window)
        if traced:
            scores = Scores(0.3, softcap, width, (window, EVERYTHING))
        given = lambda q, k, v: WAYS[way](q, k, v, segments, scores)  # noqa: E731
        out, backward = jax.vjp(given, q, k, v)
        return [out, *backward(dout)]

    mask = mask_of(seq, segments, window)
    expected = reference(q, k, v, dout, mask, 0.3, softcap)
    for x, wanted in zip(found(q, k, v, dout, segments, window), expected):
        np.testing.assert_allclose(x, wanted, atol=2e-5)


def test_long_rows_with_virtual_tokens_are_as_short_ones(monkeypatch):
    q, k, v, dout = arrays(70, 4, 2, 16)
    past = np.random.default_rng(1).normal(size=(2, 2, 5, 2, 16)).astype(np.float32)
    k, v = (np.concatenate([p, x], axis=1) for p, x in zip(past, (k, v)))
    seen = np.random.default_rng(2).random((2, 70, 5)) < 0.5

    def both(q, k, v):
        scores = Scores(0.3, 5.0)
        given = lambda *qkv: attend(*qkv, segments_of(70), scores, seen)  # noqa: E731
        out, backward = jax.vjp(given, q, k, v)
        return [out, *backward(jnp.asarray(dout))]

    expected = jax.jit(both)(q, k, v)
    monkeypatch.setitem(blockwise.LONGEST, "cpu", 64)
    monkeypatch.setattr(loops, "QUERIES", 32)
    monkeypatch.setattr(loops, "KEYS", 64)
    for x, wanted in zip(jax.jit(lambda *qkv: both(*qkv))(q, k, v), expected):
        np.testing.assert_allclose(x, wanted, atol=2e-5)


def test_first_keys_are_ranges():
    segments = np.array([[1, 1, 1, 2, 2, 0, 0]], np.int32)
    assert first_keys(segments, None, 7).tolist() == [[0, 0, 0, 3, 3, 5, 5]]
    assert first_keys(segments, 2, 7).tolist() == [[0, 0, 1, 3, 3, 5, 5]]
    assert first_keys(None, 3, 5).tolist() == [[0, 0, 0, 1, 2]]


def chosen(monkeypatch, target, *, here=True, **case):
    """The name of the implementation that `attend` takes."""
    monkeypatch.setattr(hardware, "is_here", lambda target: here)
    given = {"dtype": jnp.bfloat16, "width": 128, "packed": False}
    given |= {"scores": Scores(1.0)} | case
    asked = attention._Case(target, **given)
    ways = attention.IMPLEMENTATIONS.get(target.platform, ())
    names = (way.attend.__name__ for way in ways if way.can(asked))
    return next(names, "blockwise")


def test_which_implementation_a_target_has(monkeypatch):
    def of(target, **case):
        return chosen(monkeypatch, target, **case)

    mixed = Scores(1.0, None, jnp.int32(3), (3, EVERYTHING))
    assert of(H100) == "_cudnn"
    assert of(H100, here=False) == "_triton"  # JAX cannot ask for cuDNN's version
    assert of(H100, packed=True) == of(H100, scores=Scores(1.0, 30.0)) == "_triton"
    assert of(H100, scores=mixed) == of(H100, width=256) == "_triton"
    assert of(H100, dtype=jnp.float32) == of(H100, width=512) == "blockwise"
    t4 = hardware.Target("gpu", "Tesla T4", 1)
    assert of(t4, dtype=jnp.float16) == "blockwise"
    unknown = hardware.Target("gpu", "a card of next year", 1)
    assert of(unknown) == "_triton"
    assert of(unknown, dtype=jnp.float16) == "blockwise"
    assert of(V5E) == of(V5E, dtype=jnp.float32) == of(V5E, scores=mixed) == "_splash"
    assert of(V5E, scores=Scores(1.0, None, jnp.int32(3))) == "blockwise"
    assert of(hardware.Target("cpu", "cpu", 1)) == "blockwise"


def test_runs_that_repeat_do_without_cudnn(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", determinism.FLAG)
    assert chosen(monkeypatch, H100) == "_triton"


def count(jaxpr, name):
    """How many kernels of a name there are whose results anything reads."""
    read = {id(x) for eqn in jaxpr.eqns for x in eqn.invars}
    read |= {id(x) for x in jaxpr.outvars}
    found = 0
    for eqn in jaxpr.eqns:
        inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
        if eqn.primitive.name == "pallas_call":
            named = (eqn.params["name"] or "").startswith(name)
            found += named and any(id(x) in read for x in eqn.outvars)
        elif inner is not None:
            found += count(getattr(inner, "jaxpr", inner), name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "forward"), [(H100, "attention_forward"), (V5E, "splash_mha_fwd")]
)
def test_what_is_kept_is_not_computed_again(target, forward, monkeypatch):
    monkeypatch.setattr(hardware, "current", lambda: target)
    monkeypatch.setattr(hardware, "is_here", lambda target: False)
    q, k, v, _ = (jnp.asarray(x, jnp.bfloat16) for x in arrays(128, 2, 1, 64))

    def forwards(remat):
        def layer(q, k, v):
            return attend(q, k, v, segments_of(128))

        layer = jax.checkpoint(layer, policy=POLICIES[remat])
        loss = lambda *qkv: layer(*qkv).astype(jnp.float32).sum()  # noqa: E731
        return count(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, k, v).jaxpr, forward)

    assert (forwards("none"), forwards("dots"), forwards("full")) == (1, 1, 2)


def compiled(text, seq, folder, **mesh):
    """(MiB of temporaries, text) of attention to packed rows, forward and backward."""
    target = topologies.parse(text)
    if missing := topologies.missing(target):
        pytest.skip(missing)
    mesh = sharding.make_mesh(**mesh, devices=topologies.devices(target))
    heads = jax.NamedSharding(mesh, jax.P(sharding.BATCH, None, "tensor"))
    rows = jax.NamedSharding(mesh, jax.P(sharding.BATCH))
    batch = mesh.shape["data"] * mesh.shape["fsdp"]
    q, k = (
        jax.ShapeDtypeStruct((batch, seq, n, 128), jnp.bfloat16, sharding=heads)
        for n in (32, 8)
    )
    segments = jax.ShapeDtypeStruct((batch, seq), jnp.int32, sharding=rows)

    def both(q, k, v, dout, segments):
        out, backward = jax.vjp(lambda *qkv: attend(*qkv, segments), q, k, v)
        return out, backward(dout)

    with jax.set_mesh(mesh):
        lowered = jax.jit(both).lower(q, k, k, q, segments)
        said, _ = vendor.compiled(lowered, target, folder)
    return said.temporaries / 2**20, said.text


def test_eight_gpus_attend_each_for_their_own(verdicts):
    size, text = compiled("h100x8", 8192, verdicts, data=2, fsdp=2, tensor=2)
    assert size < 8 and "8192,8192" not in text
    assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == 3
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", text)


@pytest.mark.slow
def test_a_tpu_attends_to_8192_tokens_in_200_mib(verdicts):
    size, text = compiled("v5e-1", 8192, verdicts)
    assert size < 200 and "8192,8192" not in text
    assert text.count('custom_call_target="tpu_custom_call"') == 3
