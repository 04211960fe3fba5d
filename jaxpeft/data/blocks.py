"""Flat arrays that are written a piece at a time, and seen to be whole when read.

An array is a file of its bytes alone, or stays in memory. Every block of a mebibyte has
a hash; a block is compared with it when something of it is first read, so that to open
an array costs nothing whatever its size.
"""

import bisect
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 1 << 20  # bytes


class Writing:
    """An array that grows at its end.

    Args:
        dtype: of its values.
        path: the file; None: it stays in memory.
    """

    def __init__(self, dtype: Any, path: Path | None):
        self._dtype, self._path = np.dtype(dtype), path
        self._file = None if path is None else path.open("xb")
        self._pieces: list[np.ndarray] = []
        self._hashes: list[str] = []
        self._digest, self._room = _hash(), BLOCK
        self.size = 0  # values

    def append(self, values: np.ndarray) -> None:
        """Adds values at the end.

        Args:
            values: (n, ...), of which the rows follow one another.

        Raises:
            OSError: the file cannot be written.
        """
        whole = np.ascontiguousarray(values, self._dtype).reshape(-1)
        data = whole.data.cast("B")
        self.size += len(whole)
        if self._file is None:
            self._pieces.append(whole)
        else:
            self._file.write(data)
        while len(data):
            own, data = data[: self._room], data[self._room :]
            self._digest.update(own)
            self._room -= len(own)
            if not self._room:
                self._end_block()

    def _end_block(self) -> None:
        self._hashes.append(self._digest.hexdigest())
        self._digest, self._room = _hash(), BLOCK

    def finish(self) -> dict[str, Any]:
        """Ends the file; what is to be known of it.

        Raises:
            OSError: the file cannot be written.
        """
        if self._room < BLOCK:
            self._end_block()
        if self._file is not None:
            self._file.flush()
            self._file.close()
        return {
            "dtype": self._dtype.str,
            "size": self.size,
            "blocks": self._hashes,
        }

    def abandon(self) -> None:
        """Closes the file, which is of no use."""
        if self._file is not None:
            self._file.close()

    def values(self) -> np.ndarray:
        """The array that stayed in memory; or the file so far, mapped."""
        if self._file is not None:
            self._file.flush()
            return _mapped(self._path, self._dtype, self.size)
        return np.concatenate([np.zeros(0, self._dtype), *self._pieces])


class Blocks:
    """An array in a file, of which a slice is compared with its hashes when first read.

    Args:
        path: the file.
        known: what `Writing.finish` said of it.
        damaged: called where a block is not what was written; it raises.

    Raises:
        OSError: the file is absent, or not as long as it was.
    """

    def __init__(
        self, path: Path, known: dict[str, Any], damaged: Callable[[str], None]
    ):
        self.dtype = np.dtype(known["dtype"])
        self._values = _mapped(path, self.dtype, known["size"])
        self._hashes, self._path, self._damaged = known["blocks"], path, damaged
        self._seen = np.zeros(len(self._hashes), bool)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, wanted: slice) -> np.ndarray:
        start, stop, step = wanted.indices(len(self))
        assert step == 1
        size = self.dtype.itemsize
        first, last = start * size // BLOCK, -(-stop * size // BLOCK)
        if not self._seen[first:last].all():
            for number in range(first, last):
                self._see(number)
        return self._values[start:stop]

    def _see(self, number: int) -> None:
        if self._seen[number]:
            return
        per = BLOCK // self.dtype.itemsize
        own = self._values[number * per : (number + 1) * per]
        if _hash(own.view("u1").data).hexdigest() != self._hashes[number]:
            self._damaged(f"{self._path.name}, block {number}")
        self._seen[number] = True

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype)


class Joined:
    """Arrays end to end, of which a slice that stays within one is not copied.

    Args:
        arrays: at least one; all of one dtype.
    """

    def __init__(self, arrays: Sequence[Any]):
        self._arrays = list(arrays)
        self._ends = np.cumsum([len(array) for array in arrays]).tolist()
        self.dtype = self._arrays[0].dtype

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, wanted: slice) -> np.ndarray:
        start, stop, step = wanted.indices(len(self))
        assert step == 1
        number = bisect.bisect_right(self._ends, start)
        pieces = []
        while start < stop:
            end = self._ends[number]
            first = end - len(self._arrays[number])
            pieces.append(self._arrays[number][start - first : min(stop, end) - first])
            start, number = end, number + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate([np.zeros(0, self.dtype), *pieces])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype)


class Ones:
    """So many ones, which take no memory.

    Args:
        size: how many.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, size: int):
        self._values = np.broadcast_to(np.float32(1), (size,))

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, wanted: slice) -> np.ndarray:
        return self._values[wanted]


def _hash(data: Any = b"") -> Any:
    return hashlib.blake2b(data, digest_size=8)


def _mapped(path: Path | None, dtype: np.dtype, size: int) -> np.ndarray:
    assert path is not None
    if path.stat().st_size != size * dtype.itemsize:
        raise OSError(f"{path} is not as long as it was written")
    if not size:  # nothing can be mapped
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r", shape=(size,)))
