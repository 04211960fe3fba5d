"""The safetensors format: a reader over a memory map, a streaming writer.

Layout: 8 bytes with the header's length (little-endian), the header (JSON: tensor name
-> dtype, shape, byte offsets), then the tensors' bytes without gaps. Whether a file is
of that kind, the safetensors library checks; it gives no offsets, which a map needs.
"""

import json
import math
import mmap
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxpeft.errors import InputError

LARGEST_HEADER = 25_000_000  # bytes
MOST_TENSORS = 200_000

# The dtypes that weights may have; the rest is integer, quantized or exotic.
FLOATS: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# What is written: weights, and the codes of quantized ones.
WRITTEN = {**FLOATS, "U8": np.dtype(np.uint8)}


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor stands in its file, and what it is.

    Attributes:
        dtype: The format's own name of the dtype, such as "BF16".
        shape: The tensor's shape.
        start: The first of its bytes, counted from the top of the file.
        stop: The end of its bytes, counted likewise.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """A validated file whose tensors are read on demand; nothing is loaded on opening.

    Attributes:
        path: The file.
        tensors: {name: entry} of all tensors in it.

    Raises:
        InputError: Where the header is not one, lies about the file, or is out of all
            proportion, before anything of its announced size is allocated.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.tensors = _read_header(path)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); check its rights"
            ) from error
        self._map: mmap.mmap | None = None
        self._opening = threading.Lock()

    def view(self, name: str) -> np.ndarray:
        """A read-only array over the file's own pages, without a copy.

        Args:
            name: A tensor of one of the dtypes in FLOATS.

        Returns:
            The values in the tensor's dtype and shape.
        """
        tensor = self.tensors[name]
        return self.raw(name).view(FLOATS[tensor.dtype]).reshape(tensor.shape)

    def raw(self, name: str) -> np.ndarray:
        """The bytes of a tensor of any dtype, read-only and without a copy."""
        tensor = self.tensors[name]
        with self._opening:
            if self._map is None:
                with self.path.open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size = tensor.stop - tensor.start
        return np.frombuffer(self._map, np.uint8, size, tensor.start)

    def release(self, tensor: TensorEntry) -> None:
        """Gives a tensor's pages back to the system; a later view reads them again.

        Pages of a map count as the process's own memory until then, so that a load
        would otherwise appear to hold the model twice.

        Args:
            tensor: One of the file, or a part of one.
        """
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = tensor.start // mmap.PAGESIZE * mmap.PAGESIZE
        if tensor.stop > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, tensor.stop - first)


def write(
    path: Path,
    tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    values: Callable[[str], np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes a file tensor by tensor: only one is in memory at a time.

    Args:
        path: The file, written over if it exists.
        tensors: {name: (dtype, shape)} in the order of the file, of the dtypes in
            WRITTEN.
        values: Returns the array of a name when its turn comes.
        metadata: The texts of the header's `__metadata__`.

    Raises:
        ValueError: Where an array is not of the dtype and shape that `tensors` says.
    """
    names = {dtype: name for name, dtype in WRITTEN.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": names[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in tensors.items():
            array = np.asarray(values(name), order="C")
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(
                    f"{name}: {array.dtype} {array.shape}, not as announced"
                )
            file.write(array.reshape(-1).view(np.uint8).data)


def _read_header(path: Path) -> dict[str, TensorEntry]:
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        if first == b"version ":
            raise InputError(
                f"{path}: a Git LFS pointer, not the weights; run `git lfs pull` in "
                "its folder"
            )
        length = int.from_bytes(first, "little")
        if size < 8 or not 2 <= length <= LARGEST_HEADER:
            raise InputError(
                f"{path}: not a safetensors file, or damaged: {size} bytes, a header "
                f"of {length} bytes (at most {LARGEST_HEADER}); download it again"
            )
        text = file.read(length)
    if len(text) < length:
        raise InputError(_truncated(path, 8 + length, size))
    if text.count(b'"data_offsets"') > MOST_TENSORS:
        raise InputError(
            f"{path}: the header lists more than {MOST_TENSORS} tensors; no real model "
            "has so many, download it again"
        )
    try:
        with safe_open(path, "np"):
            return _tensors(text, 8 + length)
    except SafetensorError as error:
        reason = str(error).rpartition("deserializing header: ")[2]
    if reason.startswith("incomplete metadata"):  # all else agrees
        end = max(
            (t.stop for t in _tensors(text, 8 + length).values()), default=8 + length
        )
        raise InputError(
            _truncated(path, end, size)
            if end > size
            else f"{path}: {size} bytes, but the header describes {end}; download it "
            "again"
        )
    raise InputError(
        f"{path}: the header is not valid ({reason[:200]}); download the file again"
    )


def _tensors(text: bytes, data: int) -> dict[str, TensorEntry]:
    """{name: entry} of a checked header; `data` is where the tensors' bytes begin."""
    header = json.loads(text)
    header.pop("__metadata__", None)
    return {
        name: TensorEntry(
            entry["dtype"], tuple(entry["shape"]), data + start, data + stop
        )
        for name, entry in header.items()
        for start, stop in [entry["data_offsets"]]
    }


def _truncated(path: Path, expected: int, actual: int) -> str:
    return (
        f"{path}: truncated: expected {expected} bytes, found {actual}; "
        "download or copy the file again"
    )
