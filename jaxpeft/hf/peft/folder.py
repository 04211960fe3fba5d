"""The two files of an adapter's folder, written together or not at all."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxpeft import replacing
from jaxpeft.errors import InputError, NumericsError
from jaxpeft.hf import layout, safetensors_file
from jaxpeft.hf.peft import adapter_config
from jaxpeft.hf.safetensors_file import SafetensorsFile


@contextmanager
def writing(
    directory: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> Iterator[Path]:
    """The folder's files as they will be, to be verified before they replace others.

    Args:
        directory: The adapter's folder, made if it does not exist.
        tensors: {key: values} of adapter_model.safetensors, each of a float dtype.
        config: The content of adapter_config.json.

    Yields:
        A folder with both files; they replace those of `directory` in the end.

    Raises:
        InputError: Where the folder is unwritable.
        NumericsError: Where a weight is not finite.
    """
    for key, values in tensors.items():
        if not layout.is_finite(values):
            raise NumericsError(
                f"{key} holds NaN or infinity: the training diverged; export an "
                "earlier checkpoint"
            )
    with replacing.files_of(directory) as partial:
        safetensors_file.write(
            partial / adapter_config.WEIGHTS,
            {key: (values.dtype, values.shape) for key, values in tensors.items()},
            tensors.__getitem__,
            {"format": "pt"},
        )
        text = json.dumps(config, indent=2) + "\n"
        (partial / adapter_config.CONFIG).write_text(text, encoding="utf-8")
        yield partial


def opened(directory: Path) -> SafetensorsFile:
    """The file of weights in an adapter's folder.

    Args:
        directory: The adapter's folder.

    Raises:
        InputError: Where there is none, or one that could run code.
    """
    path = directory / adapter_config.WEIGHTS
    if path.is_file():
        return SafetensorsFile(path)
    if (directory / "adapter_model.bin").exists():
        raise InputError(
            f"{directory}: holds 'adapter_model.bin' and no safetensors; files of that "
            "kind can run code and are never opened. Convert the adapter once with "
            "peft: PeftModel.from_pretrained(model, path)"
            ".save_pretrained(new_path, safe_serialization=True)"
        )
    raise InputError(f"{path}: missing; download or export the adapter again")
