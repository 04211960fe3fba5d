"""A folder's tensors under the names of the model, whatever it was saved from.

Training in torch leaves its traces in names: wrappers around modules (`_orig_mod`), one
name alone for what two modules share, one tensor for all experts of a layer. What they
mean is certain, and they are read for it.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpeft.errors import InputError
from jaxpeft.hf import checkpoint_index, tensor_names
from jaxpeft.hf.safetensors_file import SafetensorsFile, TensorEntry
from jaxpeft.hf.tensor_names import TensorNames
from jaxpeft.models.spec import ModelConfig, ParamSpec
from jaxpeft.models.weights import is_spec

# What torch puts around a module, anywhere in a name: torch.compile, FSDP, checkpoints.
INNER = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Likewise around the whole model: DistributedDataParallel, PEFT.
OUTER = ("module.", "base_model.model.")
# In the names of PEFT's modules that stand around those of the base.
UNMERGED = (".base_layer.", ".lora_A.", ".modules_to_save.", ".original_module.")


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of a file, or a part of one.

    Attributes:
        file: The open file.
        name: The tensor's name in the file.
        part: (index on the first axis, rows of the second) that are meant; None: all.
    """

    file: SafetensorsFile
    name: str
    part: tuple[int, slice] | None = None

    @property
    def path(self) -> Path:
        """The file's path."""
        return self.file.path

    @property
    def tensor(self) -> TensorEntry:
        """The dtype, the shape and the place in the file."""
        whole = self.file.tensors[self.name]
        if self.part is None:
            return whole
        at, rows = self.part
        shape = (rows.stop - rows.start, *whole.shape[2:])
        size = (whole.stop - whole.start) // (whole.shape[0] * whole.shape[1])
        start = whole.start + (at * whole.shape[1] + rows.start) * size
        return dataclasses.replace(
            whole, shape=shape, start=start, stop=start + shape[0] * size
        )

    def view(self) -> np.ndarray:
        """A read-only array over the file's own pages, see `SafetensorsFile.view`."""
        whole = self.file.view(self.name)
        return whole if self.part is None else whole[self.part]

    def raw(self) -> np.ndarray:
        """The bytes of a whole tensor of any dtype, read-only and without a copy."""
        return self.file.raw(self.name)

    def release(self) -> None:
        """Gives the pages back to the system."""
        self.file.release(self.tensor)

    def __str__(self) -> str:
        return f"{self.path}: {self.name!r}"


Sources = Mapping[str, Stored]


def sources(directory: Path, cfg: ModelConfig) -> tuple[TensorNames, dict[str, Stored]]:
    """The tensors of a model's weights, under the names that its declarations have.

    Args:
        directory: The model's folder.
        cfg: The model's configuration.

    Returns:
        How the files name tensors, by which the declarations are named, and where each
        tensor is; what is no part of the language model is left out.

    Raises:
        InputError: As `unwrapped` does; for fused experts of another shape than `cfg`
            says.
    """
    tensors = unwrapped(directory)
    names = tensor_names.of(tensors, cfg)
    for name in names.beside(tensors):
        del tensors[name]
    specs = jax.tree.leaves(names.specs(cfg), is_leaf=is_spec)
    embedding = next(spec.hf for spec in specs if spec.axes == ("vocab", "embed"))
    if cfg.tie_word_embeddings and embedding not in tensors and names.head in tensors:
        # Of a shared tensor, safetensors' save_model keeps the first name alone.
        tensors[embedding] = tensors.pop(names.head)
    return names, _by_expert(tensors, specs, names)


def unwrapped(directory: Path) -> dict[str, Stored]:
    """The tensors of a model's folder, under their names without wrappers.

    Args:
        directory: The model's folder.

    Raises:
        InputError: As `checkpoint_index.tensors` does, and where an adapter stands
            unmerged among the weights.
    """
    files = checkpoint_index.tensors(directory)
    _require_merged(directory, files)
    return {name: Stored(files[raw], raw) for name, raw in _unwrapped(files).items()}


def _require_merged(directory: Path, names: Iterable[str]) -> None:
    """Raises InputError where PEFT's modules still stand around the base's."""
    found = [name for name in names if any(part in name for part in UNMERGED)]
    if found:
        raise InputError(
            f"{directory}: {found[0]!r} and {len(found) - 1} more are of an adapter "
            "that stands unmerged in its base; in PEFT, save what "
            "`model.merge_and_unload()` returns, or the adapter alone "
            "(`save_pretrained`), and give the base as model.path"
        )


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    """{name without wrappers: name in the file}; as they are if two would be one."""
    names = list(names)
    bare = [".".join(p for p in name.split(".") if p not in INNER) for name in names]
    while bare and (outer := [p for p in OUTER if _all_begin(bare, p)]):
        bare = [name.removeprefix(outer[0]) for name in bare]
    found = dict(zip(bare, names, strict=True))
    return found if len(found) == len(names) else dict(zip(names, names, strict=True))


def _all_begin(names: list[str], prefix: str) -> bool:
    return all(name.startswith(prefix) for name in names)


def _by_expert(
    tensors: dict[str, Stored], specs: list[Any], names: TensorNames
) -> dict[str, Stored]:
    """The tensors, each expert's apart where a layer's are stored as one.

    transformers has them so in memory, and files that are written from there, not by
    `save_pretrained`, have them so as well.
    """
    for spec in specs:
        if spec.parameter is None:
            continue
        for piece in spec.pieces():
            fused = names.stored(spec.parameter).format(piece.at[0])
            if piece.name in tensors or fused not in tensors:
                continue
            if len(spec.stack) == 1:  # a router under its name in memory
                tensors[piece.name] = tensors[fused]
                continue
            _require_shape(tensors[fused], spec)
            tensors[piece.name] = dataclasses.replace(
                tensors[fused], part=(piece.at[1], piece.columns)
            )
    fused = {
        names.stored(spec.parameter).format(layer)
        for spec in specs
        if spec.parameter is not None
        for layer in range(spec.shape[0])
    }
    fused -= {name for spec in specs for name in spec.hf_names()}
    return {name: stored for name, stored in tensors.items() if name not in fused}


def _require_shape(stored: Stored, spec: ParamSpec) -> None:
    """Raises InputError where a tensor is not the experts of a layer by `spec`."""
    *_, count, d_in, d_out = spec.shape
    if stored.tensor.shape != (count, d_out, d_in):
        raise InputError(
            f"{stored} has shape {stored.tensor.shape}; config.json implies "
            f"{(count, d_out, d_in)}, the experts of a layer, outputs and inputs. "
            "Restore both from the same source, or write the model with "
            "`save_pretrained`"
        )
