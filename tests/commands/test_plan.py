"""What `plan` foretells, beside what a run then uses."""

import json

import pytest

from jaxpeft import plan, tree
from jaxpeft.assembly import configuration
from jaxpeft.assembly.run import Run
from jaxpeft.devices import sharding
from jaxpeft.devices.compiled import build
from jaxpeft.plan import planning

from .conftest import write_config

METHODS = {
    "lora": {"adapter": {"r": 4, "target_modules": "all-linear"}},
    "full": {"adapter": {"method": "full"}},
    "full, 8-bit state": {
        "adapter": {"method": "full"},
        "optimizer": {"name": "adamw_8bit", "min_quantized_size": 256},
    },
    "layer by layer": {"adapter": {"method": "full"}, "optimizer": {"name": "adalomo"}},
    "accumulated, 16 bits": {
        "training.gradient_accumulation_steps": 2,
        "model.dtype": "bfloat16",
        "model.remat": "full",
    },
}


@pytest.fixture
def planned(settings, tmp_path, capfd):
    """planned(*arguments, **settings): the JSON that the command prints."""

    def run(*arguments, **changes):
        path = write_config(tmp_path / "plan.yaml", settings(**changes))
        capfd.readouterr()
        given = ["--config", str(path), "output_dir=nowhere", "--json", *arguments]
        assert plan.main(given) == 0
        return json.loads(capfd.readouterr().out)

    return run


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_is_what_the_run_then_uses(method, planned, settings, tmp_path):
    changes = {"data.packing": True, **METHODS[method]}
    found = planned(**changes)
    path = write_config(tmp_path / "run.yaml", settings(**changes))
    run = Run(configuration.open_config(path, [f"output_dir={tmp_path / 'run'}"]))
    sizes = {"weights": tree.nbytes(run.frozen), "parameters": tree.count(run.frozen)}
    state = run.initial_state()
    batch = run.micro_batches(run.batches[0])
    step = run.train_step()
    _, program = build(step, (state, run.fixed, batch), carries=True, mesh=run.mesh)
    memory = program.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + new
    assert abs(found["total"] - used) <= 0.1 * used
    assert found["optimizer"] == tree.nbytes(state.opt_state)
    trains = tree.nbytes(state.params)
    if "full" in method or "layer" in method:
        assert found["weights"] == trains and found["adapters"] == 0
        assert found["trainable"] == found["parameters"] == tree.count(state.params)
    else:
        assert (found["weights"], found["adapters"]) == (sizes["weights"], trains)
    assert found["devices"] == 1 and found["sent"] == {} and not found["simulated"]
    assert found["activations"] > 0 and found["fits"] is None


def test_devices_that_are_not_there(planned):
    changes = {"training.batch_size": 8, **METHODS["full"]}
    one = planned(**changes)
    arguments = ["--devices", "8", "--device-memory", "0.5", "--platform", "cpu"]
    many = planned(*arguments, mesh={"data": 1, "fsdp": -1}, **changes)
    assert many["devices"] == 8 and many["simulated"] and many["fits"] is True
    assert many["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1}
    assert many["flops"] == pytest.approx(one["flops"], rel=0.02)
    kept = [p["weights"] + p["optimizer"] for p in (one, many)]
    assert kept[1] <= 1.1 * kept[0] / 8
    assert many["activations"] == one["activations"] // 8
    assert many["sent"]["all-gather"] > 0.8 * one["weights"]


def test_sixteen_bits_of_an_accelerator_are_counted(planned):
    changes = {"model.dtype": "bfloat16", "training.batch_size": 8}
    halves = planned("--devices", "2", **changes)
    whole = planned("--devices", "2", **{**changes, "model.dtype": "float32"})
    assert halves["weights"] * 2 == pytest.approx(whole["weights"], rel=0.01)
    for name in ("activations", "temporaries"):
        assert halves[name] * 2 == pytest.approx(whole[name], rel=0.05)
    # Adapters, their gradients and their optimizer stay in 32 bits.
    assert halves["adapters"] == whole["adapters"]
    assert halves["sent"]["all-reduce"] == pytest.approx(
        whole["sent"]["all-reduce"], rel=0.05
    )


def test_one_device_of_another_kind_is_planned_for(planned):
    changes = {"model.dtype": "bfloat16", "training.batch_size": 8}
    here, there = planned(**changes), planned("--platform", "gpu", **changes)
    assert (here["simulated"], there["simulated"]) == (False, True)
    assert there["devices"] == here["devices"] == 1
    assert there["activations"] * 2 == here["activations"]
    # Whoever names a memory where only a CPU is does not mean the CPU's.
    asked = planned("--device-memory", "1", **changes)
    assert asked.pop("fits") and there.pop("fits") is None
    assert asked == there


def test_weights_that_the_mesh_does_not_divide_are_named(planned):
    mesh = {"data": 1, "fsdp": 3}
    found = planned("--devices", "3", mesh=mesh, **{"training.batch_size": 3})
    assert "model.layers.mlp.up_proj.kernel" in found["whole"]
    assert found["weights"] > 0.9 * planned()["weights"]


def test_what_does_not_fit_is_made_to(planned, settings, tmp_path, capfd):
    changes = {"training.batch_size": 8, "data.max_length": 256, **METHODS["full"]}
    found = planned(**changes)
    room = 0.7 * found["total"] / plan.HEADROOM
    advised = planned("--device-memory", str(room / 1e9), **changes)
    assert advised["fits"] is False and advised["advice"][-1]["fits"] is True
    overrides = advised["advice"][-1]["overrides"]
    assert "model.remat=full" in overrides
    again = planned("--device-memory", str(room / 1e9), *overrides, **changes)
    assert again["fits"] is True and again["total"] == advised["advice"][-1]["total"]
    path = write_config(tmp_path / "words.yaml", settings(**changes))
    given = ["--config", str(path), "output_dir=x", "--device-memory", str(room / 1e9)]
    assert plan.main(given) == 0
    words = capfd.readouterr().out
    assert "does not fit" in words and "The last line fits." in words


def test_nothing_is_read_but_the_shapes(settings, tiny, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((tiny / "config.json").read_bytes())
    changes = {"model.path": str(bare), "data.train": {"path": "no such file.json"}}
    path = write_config(tmp_path / "bare.yaml", settings(**changes))
    cfg = configuration.open_config(path, ["output_dir=x"])
    found = planning.plan(cfg, sharding.make_mesh(), simulated=False)
    assert found.parameters > 0 and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "0"], "--devices: found 0"),
        (["--device-memory", "-1"], "--device-memory: found -1.0"),
        (["mesh.fsdp=3"], "there are 1"),
        (["training.batch_size=6", "--devices", "4"], "training.batch_size: found 6"),
    ],
)
def test_what_cannot_be(arguments, message, command, settings, tmp_path):
    path = write_config(tmp_path / "run.yaml", settings())
    done = command("plan", "--config", str(path), "output_dir=x", *arguments)
    assert done.code == 2 and message in done.err
