"""A base model and its tokenizer, opened as a configuration says."""

import dataclasses
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxpeft import console, hardware, hf, models, quant, tree
from jaxpeft.assembly import precision
from jaxpeft.config import ModelSection, RunConfig, paths
from jaxpeft.errors import InputError, suggest
from jaxpeft.models import ModelConfig, stored

# What goes along with a model's weights: how it generates, its tokenizer, and what
# makes images ready where it sees.
COMPANIONS = (
    "generation_config.json",
    *hf.TOKENIZER_FILES,
    *hf.PROCESSOR_FILES,
)


@dataclass(frozen=True)
class Base:
    """A base model before its weights are read.

    Attributes:
        directory: the model's folder.
        cfg: its hyperparameters.
        tokenizer: its tokenizer.
        section: the section `model` of the configuration, with the quantization that
            the checkpoint is stored in.
        has_head: whether the files hold the head that `cfg` has; else it is drawn anew.
    """

    directory: Path
    cfg: ModelConfig
    tokenizer: Any
    section: ModelSection
    has_head: bool = True

    @property
    def name(self) -> str:
        """What other programs open it by: a hub id, or a folder."""
        path = self.section.path
        return str(self.directory) if paths.is_shipped(path) else path

    @property
    def dtype(self) -> str:
        """The dtype of the weights, or the one that quantized ones stand for."""
        return self.section.dtype

    @property
    def scales_loss(self) -> bool:
        """Whether a training step has to scale the loss."""
        return precision.scales_loss(self.cfg, self.dtype)

    def load(self, mesh: jax.sharding.Mesh | None = None) -> dict[str, Any]:
        """The weights, on the mesh by their logical axes; without a head that is new.

        Args:
            mesh: the devices to place them on; None: the default device alone.
        """
        kind = self.section.quantization
        cfg = self.cfg if self.has_head else dataclasses.replace(self.cfg, num_labels=0)
        return hf.load(
            self.directory,
            cfg,
            dtype=self.dtype,
            mesh=mesh,
            quantization=None if kind == "none" else kind,
            skip=self.section.quantization_skip,
        )

    def shapes(self) -> dict[str, Any]:
        """The weights' shapes and dtypes alone: nothing is read."""
        here = hardware.current()
        return base_shapes(self.section, self.cfg, self.dtype, here)

    def copy_companions(self, target: Path) -> None:
        """Copies to `target` what belongs to the model beside its weights."""
        copy_files(self.directory, target, COMPANIONS)


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copies those of the files `names` that are in one folder to another."""
    for name in names:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)


def open_base(section: ModelSection) -> Base:
    """Opens a model's config and tokenizer.

    Args:
        section: the section `model` of the configuration.

    Raises:
        InputError: where the model is missing or not supported, or its tokenizer or
            quantization does not fit it.
    """
    directory = hf.resolve(section.path)
    section = precision.settled_model(section, hardware.current())
    cfg = model_config(section, directory, hardware.current())
    if cfg.sees:
        console.remark(
            f"{directory}: of this {cfg.model_type} the language model alone is read, "
            "trained and run; what sees stays as it is"
        )
    section = as_stored(section, directory, cfg)
    tokenizer = hf.load_tokenizer(directory)
    hf.check_vocab(tokenizer, cfg)
    return Base(directory, cfg, tokenizer, section)


def as_stored(section: ModelSection, directory: Path, cfg: ModelConfig) -> ModelSection:
    """The section, with the quantization of a checkpoint that is stored in few bits.

    Args:
        section: the section `model` of the configuration.
        directory: the model's folder, with its weights: their headers are read.
        cfg: its hyperparameters.

    Raises:
        InputError: where the section wants another quantization.
    """
    kind = stored.quantization(cfg.hf)
    if kind is None:
        return section
    stored.check(kind, section.quantization)
    changes = {"quantization": kind, "quantization_skip": hf.kept_whole(directory, cfg)}
    return section.model_copy(update=changes)


def model_config(
    section: ModelSection, directory: Path, target: hardware.Target
) -> ModelConfig:
    """The hyperparameters in a model's folder, and how the section says to run it.

    Args:
        section: the section `model` of the configuration, its dtype settled.
        directory: the model's folder.
        target: what the model is to run on.
    """
    widened = precision.widens(section.dtype, target)
    return models.config(
        directory,
        remat=section.remat,
        offload=section.offload,
        tile=section.tile,
        activation_dtype="float32" if widened else None,
    )


def base_shapes(
    section: ModelSection, cfg: ModelConfig, dtype: str, target: hardware.Target
) -> dict[str, Any]:
    """The shapes of a model's weights, quantized ones as the section says.

    Args:
        section: the section `model` of the configuration.
        cfg: its hyperparameters.
        dtype: of the weights that are not quantized.
        target: what the weights are held for.

    Returns:
        The params tree with a shape and dtype in the place of each array.

    Raises:
        InputError: for a module to leave out that is none, and for matrices that cannot
            be quantized so.
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
        path: quant.shapes(section.quantization, spec.shape, dtype, target)
        for path, spec in specs.items()
        if hf.is_quantized(path, spec, section.quantization_skip)
    }
    return tree.replace(whole, changes)


def check_length(cfg: RunConfig, base: Base) -> None:
    """Checks that no example can be longer than the model's context.

    Args:
        cfg: the configuration, which says how long examples may be.
        base: the opened model.

    Raises:
        InputError: where `data.max_length` exceeds the context.
    """
    context, wanted = base.cfg.context, cfg.data.max_length
    if wanted > context:
        longer = ""
        if base.cfg.position_embedding == "rotary" and base.cfg.rope.kind == "default":
            longer = (
                ', or stretch it knowingly: in config.json, rope_scaling {"rope_type": '
                f'"yarn", "factor": {float(-(-wanted // context))}, '
                f'"original_max_position_embeddings": {context}}}'
            )
        raise InputError(
            f"data.max_length: found {wanted}; the model's context is {context} tokens "
            f"(config.json: max_position_embeddings); use at most that{longer}"
        )
