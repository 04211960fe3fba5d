"""The safetensors format: a validating reader over a memory map, a streaming writer.

Layout: 8 bytes with the header's length (little-endian), the header (JSON: tensor name
-> dtype, shape, byte offsets), then the tensors' bytes without gaps.
"""

import json
import math
import mmap
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxpeft.errors import InputError

LARGEST_HEADER = 25_000_000  # bytes
MOST_TENSORS = 200_000
MOST_AXES = 8

# Bits of one element, for every dtype that the format knows.
BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
# The dtypes that weights may have; the rest is integer, quantized or exotic.
FLOATS: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# What is written: weights, and the codes of quantized ones.
WRITTEN = {**FLOATS, "U8": np.dtype(np.uint8)}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor stands in its file: `start` and `stop` count from the top."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """A validated file whose tensors are read on demand; nothing is loaded on opening.

    Raises InputError where the header is not one, lies about the file, or is out of
    all proportion, before anything of its announced size is allocated.
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
        """A read-only array over the file's own pages: no copy. Only for FLOATS."""
        tensor = self.tensors[name]
        return self.raw(name).view(FLOATS[tensor.dtype]).reshape(tensor.shape)

    def raw(self, name: str) -> np.ndarray:
        """The bytes of a tensor of any dtype, read-only: no copy."""
        tensor = self.tensors[name]
        with self._opening:
            if self._map is None:
                with self.path.open("rb") as file:
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size = tensor.stop - tensor.start
        return np.frombuffer(self._map, np.uint8, size, tensor.start)

    def release(self, name: str) -> None:
        """Gives a tensor's pages back to the system; a later view reads them again.

        Pages of a map count as the process's own memory until then, so that a load
        would otherwise appear to hold the model twice.
        """
        if self._map is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        tensor = self.tensors[name]
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

    tensors: {name: (dtype, shape)} in the order of the file; `values(name)` returns
    the array when its turn comes.
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


def _read_header(path: Path) -> dict[str, Tensor]:
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
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: the header is not valid JSON ({error}); download the file again"
        ) from None
    if not isinstance(header, dict):
        raise InputError(f"{path}: the header is no JSON object; download it again")
    header.pop("__metadata__", None)
    tensors = {name: _entry(path, name, e, 8 + length) for name, e in header.items()}
    _check_extent(path, tensors.values(), 8 + length, size)
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name appears twice")
    return found


def _entry(path: Path, name: str, entry: Any, data: int) -> Tensor:
    """One tensor of the header, `data` being where the tensors' bytes begin."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, stop]}:
            numbers = (*shape, start, stop)
            whole = all(type(n) is int and 0 <= n < 2**63 for n in numbers)
            if (
                whole
                and start <= stop
                and len(shape) <= MOST_AXES
                and (stop - start) * 8 == math.prod(shape) * BITS.get(dtype, -1)
            ):
                return Tensor(dtype, tuple(shape), data + start, data + stop)
    raise InputError(
        f"{path}: the header's entry for {name!r} is not valid: {str(entry)[:200]}; "
        "dtype, shape and byte offsets must agree. Download the file again"
    )


def _check_extent(path: Path, tensors: Iterable[Tensor], data: int, size: int) -> None:
    """The tensors must fill the file from `data` to its end, without gap or overlap."""
    end = data
    for tensor in sorted(tensors, key=lambda t: (t.start, t.stop)):
        if tensor.start != end:
            raise InputError(
                f"{path}: the header leaves a gap or an overlap at byte {end}; "
                "download the file again"
            )
        end = tensor.stop
    if end > size:
        raise InputError(_truncated(path, end, size))
    if end < size:
        raise InputError(
            f"{path}: {size} bytes, but the header describes {end}; download it again"
        )


def _truncated(path: Path, expected: int, actual: int) -> str:
    return (
        f"{path}: truncated: expected {expected} bytes, found {actual}; "
        "download or copy the file again"
    )
