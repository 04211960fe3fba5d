"""What the reference says of a run's examples, computed once before the first step."""

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpeft import console, data, hardware, hf
from jaxpeft.assembly.base import Base
from jaxpeft.config import RunConfig
from jaxpeft.data import computed, store
from jaxpeft.devices import cluster, sharding
from jaxpeft.devices.compiled import Compiled
from jaxpeft.objectives import evaluation
from jaxpeft.objectives.objective import REFERENCE, Precomputed

WAY = 1  # another one where the same settings give other numbers
NOT_KEYS = {
    "path",
    "remat",
    "offload",
    "tile",
}  # of the section `model`, that decide none of them


def in_step(cfg: RunConfig) -> RunConfig:
    """The configuration with a reference that is computed where it is needed.

    Args:
        cfg: the configuration.
    """
    if not cfg.objective.options.get("precompute_reference"):
        return cfg
    section = cfg.objective.model_copy(update={"precompute_reference": False})
    return cfg.model_copy(update={"objective": section})


def is_of_new_adapter(cfg: RunConfig) -> bool:
    """Whether what is computed before depends on how a new adapter is drawn.

    Points of one program, whose seeds may differ, then cannot share it.

    Args:
        cfg: the configuration.
    """
    options = cfg.objective.options
    wanted = options.get("precompute_reference") is True
    starts = options.get("reference") == "start"
    return wanted and starts and cfg.adapter.init_from is None


class Given(NamedTuple):
    """What a reference's log-probabilities are computed with.

    Attributes:
        cfg: the configuration of the run.
        base: its model.
        mesh: its devices.
        wanted: what its objective wants computed.
        params: before the first step, adapters in.
    """

    cfg: RunConfig
    base: Base
    mesh: jax.sharding.Mesh
    wanted: Precomputed
    params: Any

    def of_training(self, batches: data.Batches | data.StreamBatches) -> data.Batches:
        """Training batches that bring along what was computed.

        Args:
            batches: of all examples.
        """
        assert isinstance(batches, data.Batches)  # as the objective was checked for
        training = self.cfg.training
        micro = training.batch_size // training.gradient_accumulation_steps
        ordered = batches.in_order(self.cfg.data.eval_batch_size or micro)
        ordered.wanted = sharding.own_rows(self.mesh, ordered.batch_size)
        own = _values(self, ordered, "training")
        return batches.over(batches.examples.with_column(REFERENCE, own))

    def of_evaluation(self, batches: data.EvalBatches | None) -> Any:
        """Evaluation batches that bring along what was computed; None where none are.

        Args:
            batches: those of the run.
        """
        if batches is None:
            return None
        own = _values(self, batches, "evaluation")
        return batches.over(batches.examples.with_column(REFERENCE, own))


def _values(given: Given, batches: data.EvalBatches, what: str) -> np.ndarray:
    """The reference's log-probabilities of all examples that batches have."""
    count, section = len(batches.numbers), given.cfg.data
    about = f"log-probabilities of the reference ({what} data)"
    # How examples lie in batches decides the rounding.
    own = [batches.fingerprint, list(batches.lengths)]
    key = store.key_of({**_identity(given), "examples": own})
    values = computed.read(section, key, count)
    found = cluster.all_say(values is not None)
    if values is None or not found:
        values = _computed(given, batches, about)
        computed.keep(section, key, values, about)
    console.say(f"{about}: {count:,} {'read back' if found else 'computed'}")
    # Of the examples that are not used nobody asks.
    whole = np.full(len(batches.examples), np.nan, np.float32)
    whole[batches.numbers] = values
    return whole


def _computed(given: Given, batches: data.EvalBatches, about: str) -> np.ndarray:
    whole, model = sharding.replicated(given.mesh), given.base.cfg

    def of_batch(params: Any, batch: Any) -> jax.Array:
        logps = given.wanted.logps(params, batch, model)
        return jax.lax.with_sharding_constraint(logps, whole)

    step = Compiled(of_batch, "reference", lambda text: None, mesh=given.mesh)
    with console.Work(f"{about}, in batches", len(batches)) as work:
        rows = evaluation.streamed(
            (
                step(given.params, sharding.placed(batch, given.mesh))
                for batch in batches
            ),
            lambda done: work.advance(),
        )
    return np.concatenate(rows)[: len(batches.numbers)].astype(np.float32)


def _identity(given: Given) -> dict[str, Any]:
    """What decides the numbers besides the examples."""
    cfg, wanted = given.cfg, given.wanted
    start, target = cfg.adapter.init_from, hardware.of_mesh(given.mesh)
    identity = {
        "computed": [REFERENCE, WAY],
        "base": hf.fingerprint(given.base.directory),
        "model": cfg.model.model_dump(mode="json", exclude=NOT_KEYS),
        "devices": [target.platform, target.kind, dict(given.mesh.shape)],
        "reference": wanted.kind,
        "init_from": None if start is None else _of_adapter(start),
    }
    if wanted.kind == "start":
        identity["adapter"] = cfg.adapter.model_dump(mode="json", exclude={"init_from"})
        identity["seed"] = cfg.seed if start is None else None
    return identity


def _of_adapter(start: str) -> str:
    """A hash of the files of an adapter."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(hf.resolve(start).glob("adapter_*")):
        digest.update(path.name.encode())
        digest.update(hashlib.blake2b(path.read_bytes()).digest())
    return digest.hexdigest()
