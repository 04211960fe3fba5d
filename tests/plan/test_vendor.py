"""What a compiler says is read, and kept until it is asked another thing."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxpeft.devices import gpu_memory, sharding, topologies
from jaxpeft.plan import vendor

GIB = 2**30


class Lowered:
    """A program that compiles to set sizes, or is refused; counts how often."""

    def __init__(self, text="module", refusal=None):
        self.text, self.refusal, self.compiles = text, refusal, 0
        self.args_info, self.told = (), {}

    def as_text(self):
        return self.text

    def compile(self, options):
        self.compiles += 1
        self.told = options
        if self.refusal:
            raise jax.errors.JaxRuntimeError(self.refusal)
        sizes = {"argument": 7, "temp": 5, "output": 4, "alias": 3}
        sizes |= {"host_argument": 2, "host_temp": 6}
        sizes = {f"{name}_size_in_bytes": size for name, size in sizes.items()}
        return SimpleNamespace(
            memory_analysis=lambda: SimpleNamespace(**sizes),
            as_text=lambda: "HloModule",
        )


TARGET = topologies.parse("h100x1")


def test_sizes_are_the_compilers_own(tmp_path):
    verdict, is_kept = vendor.compiled(Lowered(), TARGET, tmp_path)
    assert (verdict.arguments, verdict.temporaries, verdict.results) == (7, 5, 1)
    assert verdict.total == 13 and not verdict.refused and not is_kept
    assert (verdict.host_arguments, verdict.host_temporaries) == (2, 6)


def test_the_same_question_is_answered_from_before(tmp_path):
    first, second = Lowered(), Lowered()
    said, _ = vendor.compiled(first, TARGET, tmp_path / "new")
    again, is_kept = vendor.compiled(second, TARGET, tmp_path / "new")
    assert is_kept and again == said and (first.compiles, second.compiles) == (1, 0)
    for other, target in [
        (Lowered("another"), TARGET),
        (Lowered(), topologies.parse("h100x2")),
        (Lowered(), topologies.parse("h200x1")),
    ]:
        _, is_kept = vendor.compiled(other, target, tmp_path / "new")
        assert not is_kept and other.compiles == 1


def test_a_damaged_answer_is_asked_for_anew(tmp_path):
    vendor.compiled(Lowered(), TARGET, tmp_path)
    [kept] = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:-20])
    asked = Lowered()
    assert not vendor.compiled(asked, TARGET, tmp_path)[1] and asked.compiles == 1
    assert vendor.compiled(asked, TARGET, tmp_path)[1]


def test_the_oldest_answers_go(tmp_path, monkeypatch):
    vendor.compiled(Lowered(), TARGET, tmp_path)
    size = next(tmp_path.iterdir()).stat().st_size
    monkeypatch.setattr(vendor, "SIZE", 2 * size + size // 2)
    for text in "abcd":
        vendor.compiled(Lowered(text), TARGET, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert vendor.compiled(Lowered("d"), TARGET, tmp_path)[1]


def test_nothing_is_kept_where_the_cache_is_off(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXPEFT_CACHE_DIR", "off")
    assert vendor.folder() is None
    asked = Lowered()
    for _ in range(2):
        vendor.compiled(asked, TARGET, vendor.folder())
    assert asked.compiles == 2
    monkeypatch.setenv("JAXPEFT_CACHE_DIR", str(tmp_path))
    assert vendor.folder() == tmp_path / "programs" / "plans"


@pytest.mark.parametrize(
    ("said", "total"),
    [
        ("RESOURCE_EXHAUSTED: Used 19.25G of 15.75G hbm.", 19.25 * GIB),
        ("RESOURCE_EXHAUSTED: temporaries (512.00M) exceeds", GIB / 2),
        ("RESOURCE_EXHAUSTED: too much", 0),
    ],
)
def test_a_refusal_says_what_was_needed(said, total, tmp_path):
    for _ in range(2):  # kept like all that a compiler says
        verdict, _ = vendor.compiled(Lowered(refusal=said), TARGET, tmp_path)
        assert verdict.refused == said and verdict.total == total


def test_other_failures_are_faults(tmp_path):
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        vendor.compiled(Lowered(refusal="INTERNAL: a bug"), TARGET, tmp_path)


def test_a_tpus_compiler_knows_its_memory():
    pytest.importorskip("libtpu")
    target = topologies.parse("v5e-1")
    mesh = sharding.make_mesh(devices=topologies.devices(target))
    place = sharding.replicated(mesh)
    x = jax.ShapeDtypeStruct((2**16, 2**16), jnp.bfloat16, sharding=place)
    with jax.set_mesh(mesh):
        lowered = jax.jit(lambda x: jnp.sin(x @ x) @ x).trace(x).lower()
    verdict, _ = vendor.compiled(lowered, target, None)
    assert f"{target.memory / GIB}G" in verdict.refused
    # The argument, the result and what stands between them are 8 GiB each.
    assert 16 * GIB <= verdict.total <= 25 * GIB


def test_one_gpu_is_told_its_memory_and_others_nothing():
    for text, is_told in (("h100x1", True), ("h100x2", False), ("v5e-1", False)):
        lowered = Lowered()
        vendor.compiled(lowered, topologies.parse(text), None)
        assert (gpu_memory.FLAG in (lowered.told or {})) == is_told
