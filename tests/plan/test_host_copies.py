"""What goes to the host's memory and back, and what of it is waited for."""

import argparse
import json
from types import SimpleNamespace

import jax
import pytest

from jaxpeft import hardware, models, tree
from jaxpeft.assembly import configuration
from jaxpeft.devices import host_memory, sharding, topologies
from jaxpeft.errors import InputError
from jaxpeft.plan import compiling, host_copies, program_text
from jaxpeft.plan.estimate import SHARES, estimate

# A megabyte goes to the host beside a product, and comes back with nothing beside it.
TEXT = """HloModule jit_step, is_scheduled=true

ENTRY %main (a: bf16[1024,512], b: bf16[512,512]) -> bf16[1024,512] {
  %a = bf16[1024,512]{1,0} parameter(0)
  %b = bf16[512,512]{1,0} parameter(1)
  %out = (bf16[1024,512]{1,0:S(5)}, bf16[1024,512]{1,0}, u32[]) copy-start(%a)
  %dot = bf16[1024,512]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %sent = bf16[1024,512]{1,0:S(5)} copy-done(%out)
  %in = (bf16[1024,512]{1,0}, bf16[1024,512]{1,0:S(5)}, u32[]) copy-start(%sent)
  %back = bf16[1024,512]{1,0} copy-done(%in)
  ROOT %sum = bf16[1024,512]{1,0} add(%back, %dot)
}
"""  # noqa: E501
H100 = hardware.Target("gpu", "NVIDIA H100 80GB HBM3", 1)


def test_copies_are_told_by_where_they_go():
    found = host_copies.copies(program_text.read(TEXT))
    assert found == {
        ("main", "out"): host_copies.Copy(2**20, True, "sent"),
        ("main", "in"): host_copies.Copy(2**20, False, "back"),
    }


def test_what_nothing_runs_beside_is_waited_for():
    cost = estimate(TEXT, H100)
    assert cost is not None and H100.device is not None
    assert (cost.to_host, cost.from_host) == (2**20, 2**20)
    whole = 2**20 / (H100.device.host * SHARES["gpu"].links)
    product = cost.seconds - cost.host_waits
    assert cost.waits == cost.host_waits
    # The one that is sent runs beside the product, the other beside nothing.
    assert whole < cost.host_waits < 2 * whole
    assert 2 * whole - cost.host_waits < product


# As XLA has it of a device that has such memory.
SENT = '{mhlo.frontend_attributes = {_xla_buffer_placement = "pinned_host"}}'


def test_gpus_alone_are_told_to_begin_copies_before_they_are_wanted():
    def lowered(x):
        return jax.jit(lambda x: host_memory.brought(x) + 1).trace(x).lower()

    mesh = sharding.make_mesh(1, devices=jax.devices()[:1])
    here = jax.device_put(jax.numpy.ones(4), sharding.replicated(mesh))
    there = jax.device_put(here, host_memory.placed(sharding.replicated(mesh)))
    assert host_memory.options(lowered(there), "gpu") == host_memory.AHEAD
    assert host_memory.options(lowered(there), "tpu") == {}
    assert host_memory.options(lowered(here), "gpu") == {}
    # What is sent would be kept several times.
    both = f"{lowered(there).as_text()} {SENT}"
    assert host_memory.options(SimpleNamespace(as_text=lambda: both), "gpu") == {}


class Memory:
    def __init__(self, kind):
        self.kind = kind


class Device:
    platform, device_kind = "npu", "NPU 1"

    def __init__(self, *kinds):
        self.kinds = kinds

    def addressable_memories(self):
        return [Memory(kind) for kind in self.kinds]


def test_a_device_says_whether_it_reaches_the_hosts_memory():
    assert host_memory.is_lacking(Device("device", "unpinned_host"))
    assert not host_memory.is_lacking(Device("device", "pinned_host"))
    assert not host_memory.is_lacking(Device())  # a description that says nothing


@pytest.mark.parametrize("offload", ["activations", "weights", "both"])
def test_without_such_memory_a_run_is_refused_before_anything_is_read(
    offload, monkeypatch
):
    more = [f"model.offload={offload}", "model.path=nowhere", "output_dir=nowhere"]
    cfg = configuration.open_config("jaxpeft:quickstart.yaml", more)
    monkeypatch.setattr(host_memory, "is_lacking", lambda device: True)
    mesh = sharding.make_mesh()
    told = rf"model\.offload: found '{offload}'.*model\.remat: full"
    with pytest.raises(InputError, match=told):
        compiling.Step(cfg, mesh, widened=False)
    from jaxpeft.assembly.run import Run

    with pytest.raises(InputError, match="has no memory of the kind 'pinned_host'"):
        Run(cfg)
    from jaxpeft.evaluate import by_tasks

    asked = {"config": "jaxpeft:quickstart.yaml", "overrides": more}
    none = dict.fromkeys(("model", "run", "batch_size"))
    with pytest.raises(InputError, match="has no memory of the kind 'pinned_host'"):
        by_tasks.opened(argparse.Namespace(**none, **asked))


def test_what_lies_on_the_host_is_counted_there():
    mesh, more = sharding.make_mesh(1, devices=jax.devices()[:1]), ["output_dir=x"]

    def step(*offloads):
        cfg = configuration.open_config("jaxpeft:quickstart.yaml", [*more, *offloads])
        return compiling.Step(cfg, mesh, widened=False)

    here = step()
    there = step("model.offload=weights", "optimizer.offload=true")
    assert here.on_the_host() == 0
    kept, left = here.kept(), there.kept()
    assert left["weights"] < kept["weights"] / 2 and left["optimizer"] < 100
    assert sum(left.values()) + there.on_the_host() == sum(kept.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e-1", "h100x1"])
def test_the_compilers_put_all_that_is_offloaded_into_the_hosts_memory(
    name, tmp_path, asset_model
):
    target = topologies.parse(name)
    if remedy := topologies.missing(target):
        pytest.skip(remedy)
    config = json.loads((asset_model / "config.json").read_text())
    config["num_hidden_layers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    more = ["output_dir=nowhere", f"model.path={tmp_path}", "data.max_length=512"]
    more += ["model.dtype=bfloat16", "training.batch_size=4", "model.remat=full"]
    more += ["model.offload=both", "optimizer.offload=true"]
    given = configuration.open_config("jaxpeft:quickstart.yaml", more)
    found = compiling.compiled(given, target, topologies.devices(target))
    kept = 2 * 4 * 512 * config["hidden_size"] * 2
    layers = models.shapes(models.config(config), "bfloat16")["model"]["layers"]
    weights = tree.nbytes([x for x in jax.tree.leaves(layers) if x.ndim >= 3])
    state = 2 * 4 * found.trainable
    there, tiles = found.on_the_host(), 1.0 if target.gpu else 1.2  # half empty, some
    assert there["activations"] == kept
    assert weights + state <= there["given"] <= tiles * (weights + state)
    assert found.kept["optimizer"] < 1000 and found.memory()["other arguments"] < 2**20
    cost = found.estimate
    assert cost is not None and cost.to_host == kept + state
    # Forwards and backwards each bring the weights.
    assert cost.from_host == kept + state + 2 * weights
    begun = host_copies.copies(found.program)
    assert all(one.done != at[1] for at, one in begun.items())
    # Between its beginning and its end other work is done.
    ahead = 0
    for (computation, start), one in begun.items():
        names = list(found.program.computations[computation].operations)
        ahead += names.index(one.done) - names.index(start) > 1
    assert ahead > len(begun) / 2
