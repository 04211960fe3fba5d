"""A file as it is read: its bytes or text, unpacked on the way, its faults told."""

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, TextIO

from jaxpeft.data.sources import remote
from jaxpeft.errors import InputError

PACKED = (".gz", ".zst")
_BLOCK = 1 << 20
_PACKED_BLOCK = 1 << 14  # what it unpacks to is held


class Opened:
    """A file that is read from its beginning to its end.

    Args:
        path: the file.
        raw: its bytes as they lie on the disk.
        packed: leave them as they are.

    Attributes:
        path: the file.
        file: its bytes, unpacked.
    """

    def __init__(self, path: str, raw: BinaryIO, packed: bool = False):
        self.path, self._raw = path, raw
        self._size = raw.seek(0, os.SEEK_END) if raw.seekable() else 0
        if self._size:
            raw.seek(0)
        self.file = raw if packed else _unpacked(path, raw)

    def done(self) -> float:
        """The share of the file on the disk that has been read, from 0 to 1."""
        return min(1.0, self._raw.tell() / self._size) if self._size else 0.0


def bytes_of(path: str) -> BinaryIO:
    """A file's bytes as they lie where it is.

    Args:
        path: the file, or its address elsewhere.

    Raises:
        OSError: it cannot be opened.
        InputError: it cannot be reached.
    """
    return remote.open_remote(path) if remote.is_remote(path) else open(path, "rb")


@contextmanager
def opened(path: str, *, packed: bool = False) -> Iterator[Opened]:
    """A file's bytes; unpacked where it is called .gz or .zst.

    Args:
        path: the file.
        packed: leave its bytes as they are.

    Raises:
        InputError: it cannot be read, or its packed bytes break off or are damaged.
    """
    try:
        with bytes_of(path) as raw:
            yield Opened(path, raw, packed)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(_damaged(path, error)) from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error})"
        ) from error


@contextmanager
def opened_text(path: str) -> Iterator[tuple[TextIO, Opened]]:
    """A file's text, whose line ends stay as they are, and the file beside it.

    Args:
        path: the file.

    Raises:
        InputError: as of `opened`, or it is not UTF-8.
    """
    try:
        with opened(path) as source:
            text = io.TextIOWrapper(source.file, encoding="utf-8-sig", newline="")
            yield text, source
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def decoded(data: bytes, path: str, line: int) -> str:
    """The text of some bytes of a file.

    Args:
        data: the bytes.
        path: the file, for messages.
        line: the number of the first line.

    Raises:
        InputError: they are not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise InputError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not valid UTF-8; save "
            "the file in the encoding UTF-8"
        ) from error


def _not_utf8(path: str) -> InputError:
    """Reads a file once more, to find the line that is not UTF-8."""
    try:
        with opened(path) as source:
            for number, line in enumerate(source.file, 1):
                decoded(line, path, number)
    except InputError as error:
        return error
    return InputError(f"{path}: changed while it was read; repeat the command")


def _unpacked(path: str, raw: BinaryIO) -> BinaryIO:
    name = remote.without_query(path).lower()
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)  # pyright: ignore[reportReturnType]
    if name.endswith(".zst"):
        return io.BufferedReader(_Zstandard(path, raw), _BLOCK)
    return raw


class _Zstandard(io.RawIOBase):
    """The unpacked bytes of zstandard's frames.

    The package's own reader takes a frame that breaks off for one that has ended.
    """

    def __init__(self, path: str, raw: BinaryIO):
        try:
            import zstandard
        except ImportError as error:
            raise InputError(
                f"{path}: reading .zst needs zstandard; pip install "
                "'jaxpeft[datasets]', or unpack the file"
            ) from error
        self._raw, self._error = raw, zstandard.ZstdError
        self._frame = zstandard.ZstdDecompressor
        self._state = self._frame().decompressobj()
        self._ready, self._inside = memoryview(b""), False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            packed = self._state.unused_data if self._state.eof else b""
            if self._state.eof:
                self._state, self._inside = self._frame().decompressobj(), False
            packed = packed or self._raw.read(_PACKED_BLOCK)
            if not packed:
                if self._inside:
                    raise EOFError("a frame has no end")
                return 0
            self._inside = True
            try:
                self._ready = memoryview(self._state.decompress(packed))
            except self._error as error:
                raise zlib.error(str(error)) from error
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _damaged(path: str, error: Exception) -> str:
    """What is wrong with a packed file: up to which line it can be unpacked."""
    line = 1
    try:
        with bytes_of(path) as raw:
            file = Opened(path, raw).file
            while block := file.read(_BLOCK // 16):
                line += block.count(b"\n")
    except (EOFError, OSError, zlib.error):
        pass
    breaks = isinstance(error, EOFError)
    return (
        f"{path}:{line}: "
        + (
            "its packed bytes break off here"
            if breaks
            else f"its packed bytes are damaged from here on ({error})"
        )
        + "; fetch the file again, or pack it anew"
    )
