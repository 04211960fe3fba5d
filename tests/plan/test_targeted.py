"""`plan --target`: the step of a run, compiled for devices that are not here."""

import dataclasses
import json

import pytest

from jaxpeft import plan
from jaxpeft.assembly import configuration
from jaxpeft.config import AdapterSection
from jaxpeft.devices import sharding, topologies
from jaxpeft.errors import InputError
from jaxpeft.plan import compiling, planning, targeted, vendor
from jaxpeft.plan.facts import facts
from jaxpeft.plan.vendor import Verdict

OVERRIDES = (
    *("output_dir=nowhere", "data.max_length=128", "data.packing=true"),
    *("training.batch_size=4", "adapter.r=4", "model.remat=full"),
)


@pytest.fixture(scope="module")
def cfg(tmp_path_factory, asset_model):
    """The shipped model with two layers, so that its compilation is short."""
    folder = tmp_path_factory.mktemp("base")
    config = json.loads((asset_model / "config.json").read_text())
    config["num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    more = [*OVERRIDES, f"model.path={folder}"]
    return configuration.open_config("jaxpeft:quickstart.yaml", more)


# Their compilers take 10 to 20 seconds of a core for the smallest step.
TARGETS = [pytest.param(name, marks=pytest.mark.slow) for name in ("v5e-4", "h100x4")]


@pytest.fixture(scope="module", params=TARGETS)
def compiled(request, cfg, verdicts):
    """What the compilers of a TPU and of a GPU say of the step."""
    target = topologies.parse(request.param)
    if remedy := topologies.missing(target):
        pytest.skip(remedy)
    mesh = cfg.mesh.model_copy(update={"fsdp": 2})
    cfg = cfg.model_copy(update={"mesh": mesh})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vendor, "folder", lambda: verdicts)
        found = compiling.compiled(cfg, target, topologies.devices(target))
    return target, cfg, found


def test_its_parts_are_what_the_run_keeps(compiled):
    target, cfg, found = compiled
    # The places are the same on any devices, so also on those of the estimate.
    step = compiling.Step(
        cfg, sharding.make_mesh(2, 2, devices=topologies.devices(target)), widened=False
    )
    assert found.kept == step.kept() and found.mesh["fsdp"] == 2
    parts = found.memory()
    assert parts.pop("total") == sum(parts.values()) == found.total
    # Donated: nothing that is trained leaves at another place than it came in.
    assert found.verdict.results < 2**20
    assert found.fits(target.memory) and not found.fits(found.total - 1)


def test_the_largest_arrays_are_named(compiled):
    _, _, found = compiled
    sizes = [one.nbytes for one in found.largest()]
    assert sizes and sizes == sorted(sizes, reverse=True)
    assert all(one.name for one in found.largest())


def test_lines_and_json_say_the_same(compiled):
    target, cfg, found = compiled
    text = "\n".join(targeted.lines(found, target, target.memory))
    said = targeted.as_json(found, target, target.memory, [])
    assert json.loads(json.dumps(said)).keys() == said.keys()
    assert said["fits"] is True and said["devices"] == 4 and "\nfits: " in text
    assert said["weights"] + said["adapters"] < said["total"]
    assert said["estimate"]["seconds"] > said["estimate"]["at_peak"] > 0
    assert said["tokens_per_second"] * said["estimate"]["seconds"] == pytest.approx(
        cfg.training.batch_size * cfg.data.max_length
    )
    assert 0 < said["mfu"] < 1 and said["sent"] and "\ncostliest places:\n" in text
    assert f"4 devices of {found.target.kind}" in text and said["compiler"] in text


def test_what_does_not_fit_says_so_in_its_compilers_words(compiled):
    target, _, found = compiled
    tight = "\n".join(targeted.lines(found, target, found.total - 1))
    assert "\ndoes not fit: " in tight
    verdict = Verdict("libtpu", 1.0, 0, 0, 0, refused="HBM: 40.00G", text="")
    refused = dataclasses.replace(found, verdict=verdict)
    said = targeted.as_json(refused, target, target.memory, [])
    assert said["fits"] is False and said["refused"] == "HBM: 40.00G"
    assert "HBM: 40.00G" in "\n".join(targeted.lines(refused, target, target.memory))


def test_without_the_compiler_there_is_an_estimate(monkeypatch, capsys, cfg):
    monkeypatch.setattr(topologies, "find_spec", lambda name: None)
    seen = []
    monkeypatch.setattr(plan, "_in_child", lambda *given: seen.append(given) or 0)
    given = ["--config", "jaxpeft:quickstart.yaml", "--target", "v5p-8"]
    assert plan.main(given) == 0
    assert seen == [(4, given)]  # four chips, in place of those that are here
    said = capsys.readouterr().err
    assert "pip install 'jaxpeft[aot-tpu]'" in said and "is an estimate" in said
    with pytest.raises(InputError, match=r"pip install 'jaxpeft\[aot-tpu\]'"):
        plan.main([*given, "--search"])


def test_a_search_needs_a_target_and_a_compilation():
    with pytest.raises(InputError, match="--search needs a target"):
        plan.parse(["--config", "x.yaml", "--search"])
    with pytest.raises(InputError, match="--compilations: found 0"):
        plan.parse(["--config", "x.yaml", "--target", "v5e-4", "--compilations", "0"])


@pytest.mark.parametrize("other", ["--devices=4", "--platform=gpu"])
def test_what_a_target_says_is_not_said_twice(other):
    with pytest.raises(InputError, match="--target says what --"):
        plan.parse(["--config", "x.yaml", "--target", "v5e-4", other])


def test_what_would_help_is_tried_by_whatever_says_how_large_a_run_is(cfg):
    class Sized:
        def __init__(self, cfg):
            self.total = cfg.data.max_length * (2 if cfg.model.remat != "full" else 1)

        def fits(self, room):
            return self.total <= room

    def reopen(more):
        return configuration.open_config("jaxpeft:quickstart.yaml", [*OVERRIDES, *more])

    advised = list(planning.advise(reopen, Sized(cfg), 4, 64, Sized))
    assert [one.overrides for one in advised] == [("data.max_length=64",)]
    assert advised[-1].plan.fits(64)


@pytest.mark.slow
@pytest.mark.usefixtures("kept_verdicts")
def test_a_device_without_bfloat16_multiplies_in_float16(cfg):
    """With `model.dtype: auto`; the state has the scale that the loss then needs."""
    target = topologies.parse("t4x1")
    if remedy := topologies.missing(target):
        pytest.skip(remedy)
    model = cfg.model.model_copy(update={"dtype": "auto"})
    cfg = cfg.model_copy(update={"model": model})
    found = compiling.compiled(cfg, target, topologies.devices(target))
    step = facts(found.program, length=128, vocabulary=4096)
    assert set(step.products) == {"f16"}
    mesh = sharding.make_mesh(devices=topologies.devices(target))
    assert compiling.Step(cfg, mesh, widened=False).state.loss_scale is not None
    trains = cfg.model_copy(update={"adapter": AdapterSection(method="full")})
    state = compiling.Step(trains, mesh, widened=False).state
    assert state.loss_scale is None  # float32
