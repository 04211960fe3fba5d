"""A base model, its tokenizer and its adapter, opened as a configuration says."""

import dataclasses
import functools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxpeft import adapters, config, hf, kernel, models, optim, quant, tree
from jaxpeft.config import AdapterSection, ModelSection, RunConfig
from jaxpeft.devices import sharding
from jaxpeft.errors import InputError, suggest
from jaxpeft.models import ModelConfig, stored

TABLES = {
    "adapter": adapters.TABLE,
    "optimizer": optim.OPTIMIZERS,
    "schedule": optim.SCHEDULES,
}
CONFIG = "config.yaml"
ADAPTER = "adapter"
MODEL = "model"  # in its place after full fine-tuning
FULL = "full"
TARGETS = "target_modules"
WHAT_TRAINS = (
    TARGETS,
    "exclude_modules",
    "layers_to_transform",
    "modules_to_save",
    "bias",
)

# What goes along with a model's weights: how it generates, and its tokenizer.
COMPANIONS = ("generation_config.json", *hf.TOKENIZER_FILES)


@dataclass(frozen=True)
class Base:
    """A base model before its weights are read."""

    directory: Path
    cfg: ModelConfig
    tokenizer: Any
    section: ModelSection

    @property
    def dtype(self) -> str:
        """That the weights are stored in, or in place of which they are quantized."""
        return self.section.dtype

    def load(self, mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
        """The weights, on the mesh by their logical axes."""
        kind = self.section.quantization
        return hf.load(
            self.directory,
            self.cfg,
            dtype=self.dtype,
            mesh=mesh,
            quantization=None if kind == "none" else kind,
            skip=self.section.quantization_skip,
        )

    def shapes(self) -> dict[str, Any]:
        """The weights' shapes alone."""
        return shapes(self.section, self.cfg, self.dtype)

    def copy_companions(self, target: Path) -> None:
        """Copies to `target` what belongs to the model beside its weights."""
        for name in COMPANIONS:
            if (self.directory / name).is_file():
                shutil.copy(self.directory / name, target / name)


def open_base(section: ModelSection) -> Base:
    """Opens a model's config and tokenizer; raises InputError for what is wrong."""
    directory = hf.resolve(section.path)
    cfg = model_config(section, directory)
    section = as_stored(section, directory, cfg)
    tokenizer = hf.load_tokenizer(directory)
    hf.check_vocab(tokenizer, cfg)
    return Base(directory, cfg, tokenizer, section)


def as_stored(section: ModelSection, directory: Path, cfg: ModelConfig) -> ModelSection:
    """The section, with the quantization of a checkpoint that is stored in few bits.

    Raises InputError where the section wants another.
    """
    kind = stored.quantization(cfg.hf)
    if kind is None:
        return section
    stored.check(kind, section.quantization)
    changes = {"quantization": kind, "quantization_skip": hf.kept_whole(directory, cfg)}
    return section.model_copy(update=changes)


def model_config(section: ModelSection, directory: Path) -> ModelConfig:
    """The hyperparameters in a model's folder, and how the section says to run it.

    On a CPU the activations are float32 whatever the weights are stored in: products
    of 16-bit numbers are slower there, and no memory would be saved.
    """
    widened = jax.default_backend() == "cpu" and section.dtype != "float32"
    return models.config(
        directory,
        remat=section.remat,
        activation_dtype="float32" if widened else None,
    )


def shapes(section: ModelSection, cfg: ModelConfig, dtype: str) -> dict[str, Any]:
    """The shapes of a model's weights, quantized ones as the section says.

    Raises InputError for a module to leave out that is none, and for matrices that
    cannot be quantized so.
    """
    whole = models.shapes(cfg, dtype)
    if section.quantization == "none":
        return whole
    specs = dict(tree.walk(models.param_specs(cfg)))
    modules = {path.rsplit(".", 2)[-2] for path, spec in specs.items() if spec.stacked}
    unknown = [name for name in section.quantization_skip if name not in modules]
    if unknown:
        raise InputError(
            *(
                f"model.quantization_skip: {name!r} is no module of the layers"
                + suggest(name, sorted(modules))
                for name in unknown
            )
        )
    changes = {
        path: quant.shapes(section.quantization, spec.shape, dtype)
        for path, spec in specs.items()
        if hf.is_quantized(path, spec, section.quantization_skip)
    }
    return tree.replace(whole, changes)


def check_adapter(base: Base, section: AdapterSection) -> None:
    """Raises InputError if the adapter does not fit, before any weight is read."""
    if section.method == FULL and section.init_from is not None:
        raise InputError(
            f"adapter.init_from: found {section.init_from!r} beside method full, which "
            "has no adapter; remove it, or merge that adapter first (jaxpeft export)"
        )
    if section.method == FULL and base.section.quantization != "none":
        raise InputError(
            f"model.quantization: found {base.section.quantization!r} with "
            "adapter.method full; few bits cannot train: use none, or an adapter"
        )
    if section.init_from is None:
        inject = functools.partial(
            adapters.inject,
            rules=rules(section),
            names=models.module_names(base.cfg),
        )
        params = jax.eval_shape(
            lambda params, key: inject(params, key=key),
            base.shapes(),
            jax.random.key(0),
        )
        hf.check_writable(params, base.cfg)


def add_adapter(
    params: Mapping[str, Any], section: AdapterSection, cfg: ModelConfig, key: jax.Array
) -> dict[str, Any]:
    """The params with a new adapter, or with the one of `init_from`.

    What the configuration says of an adapter to continue from (`r`, `lora_alpha`,
    `target_modules`) must agree with it; what it does not say is the adapter's own.
    """
    names = models.module_names(cfg)
    if section.init_from is None:
        return adapters.inject(params, rules(section), key, names)
    patterns = {"rank_pattern", "alpha_pattern"}
    shaping = {"r", "lora_alpha", "use_rslora", *patterns} & set(section.options)
    given = {TARGETS} & section.model_fields_set
    given |= {name for name in WHAT_TRAINS[1:] if _says_something(section, name)}
    if shaping or given:
        zeros = {**rules(section), "init_lora_weights": "zero"}
        params = adapters.inject(params, zeros, key, names)
    params = hf.load_adapter(params, hf.resolve(section.init_from), cfg)
    dropout = section.options.get("lora_dropout")
    if dropout is None:
        return dict(params)
    changes = {
        name: dataclasses.replace(node, dropout=dropout)
        for name, node in kernel.nodes(params).items()
        if hasattr(node, "dropout")
    }
    return tree.replace(params, changes)


def _says_something(section: AdapterSection, name: str) -> bool:
    return getattr(section, name) != AdapterSection.model_fields[name].default


def check_length(cfg: RunConfig, base: Base) -> None:
    """Raises InputError where examples could be longer than the model's context."""
    context = base.cfg.max_position_embeddings
    if cfg.data.max_length > context:
        raise InputError(
            f"data.max_length: found {cfg.data.max_length}; the model's context is "
            f"{context} tokens (config.json: max_position_embeddings); use at most that"
        )


def check_batches(cfg: RunConfig, mesh: jax.sharding.Mesh) -> None:
    """Raises InputError where the devices of the mesh cannot share a batch evenly."""
    parts = cfg.training.gradient_accumulation_steps
    devices, size = mesh.shape["data"] * mesh.shape["fsdp"], cfg.training.batch_size
    step = devices * parts
    if size % step:
        near = f"{size // step * step} or " if size > step else ""
        raise InputError(
            f"training.batch_size: found {size}; {devices} devices (mesh data x fsdp) "
            f"times {parts} gradient_accumulation_steps do not divide it; use {near}"
            f"{size // step * step + step}"
        )
    if cfg.data.eval_batch_size is not None:
        sharding.check_batch(cfg.data.eval_batch_size, mesh, "data.eval_batch_size")


def open_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in a file, checked against all that it can choose from."""
    return config.load(path, overrides, TABLES)


def open_run(
    directory: str | Path, overrides: Sequence[str] = ()
) -> tuple[RunConfig, Path | None]:
    """The configuration of a run directory and the folder of its trained adapter.

    After full fine-tuning there is no adapter, and the configuration's base model is
    the one that was trained. Raises InputError where the directory holds no run, or
    one that has not ended.
    """
    directory = Path(directory)
    path = directory / CONFIG
    if not path.is_file():
        raise InputError(
            f"--run: {str(path)!r} is missing; give the output_dir of a training run"
        )
    cfg = open_config(path, overrides)
    result = directory / (MODEL if cfg.adapter.method == FULL else ADAPTER)
    if not result.is_dir():
        raise InputError(
            f"--run: {str(result)!r} is missing: the run has not ended; repeat its "
            "training command to finish it"
        )
    if cfg.adapter.method != FULL:
        return cfg, result
    trained = cfg.model.model_copy(update={"path": str(result)})
    return cfg.model_copy(update={"model": trained}), None


def trains_all(section: AdapterSection) -> bool:
    """Whether every weight of the base trains: method full, and no part of it named."""
    named = any(_says_something(section, name) for name in WHAT_TRAINS)
    given = any(value is not None for value in section.options.values())
    return section.method == FULL and not named and not given


def rules(section: AdapterSection) -> dict[str, Any]:
    """What `adapters.inject` takes, of a section: its method's keys, and those given.

    Raises InputError where keys of an adapter are given beside a method without one.
    """
    given = {
        name: getattr(section, name)
        for name in WHAT_TRAINS
        if name in section.model_fields_set
    }
    useless = ("bias",) if section.method == FULL else WHAT_TRAINS[1:]
    idle = [n for n in given if n in useless and _says_something(section, n)]
    if section.method in adapters.WITHOUT and idle:
        raise InputError(
            f"adapter.{idle[0]}: found {given[idle[0]]!r} with method "
            f"{section.method}, which has no use for it; remove it, or use lora"
        )
    if section.method == FULL:
        given.pop("bias", None)
    elif section.method in adapters.WITHOUT:
        given = {}
    return {"method": section.method, **given, **section.options}
