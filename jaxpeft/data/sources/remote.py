"""Files that are elsewhere, such as in a bucket, through fsspec and its packages."""

import io
import json
import re
from typing import Any, BinaryIO

from jaxpeft.errors import InputError, suggest

# The packages that fsspec needs for an address, by how it begins.
PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "http": "fsspec[http]",
    "https": "fsspec[http]",
    "hf": "huggingface_hub",
    "file": "fsspec",
    "memory": "fsspec",
}
_WEB = ("http", "https")  # which have no folders
# What changes with a file's content, by the names that the systems have for it.
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "blob_id")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
_BLOCK = 1 << 20


def is_remote(path: str) -> bool:
    """Whether a path is the address of something elsewhere.

    Args:
        path: what was given.
    """
    return re.match(r"[A-Za-z0-9+.:-]+://", path) is not None


def without_query(path: str) -> str:
    """An address without what a web address has after a question mark.

    Args:
        path: what was given.
    """
    return path.partition("?")[0] if _scheme(path) in _WEB else path


def listed(path: str) -> tuple[list[str], bool]:
    """The files at an address, and whether they were looked for in a folder.

    Args:
        path: a file, a folder, or a pattern with `*`; on the web a file.

    Raises:
        InputError: there is none, it cannot be reached, or a package is missing.
    """
    system = _system(path)
    if _scheme(path) in _WEB:
        return [path], False
    try:
        inner = system._strip_protocol(path)
        if re.search(r"[*?\[]", inner) and not system.exists(inner):
            found, several = system.glob(inner), True
        elif system.isdir(inner):
            found, several = system.ls(inner, detail=False), True
        else:
            found, several = [inner] if system.exists(inner) else [], False
    except Exception as error:
        raise _unreachable(path, error) from error
    if not found and not several:
        raise InputError(f"{path}: there is no such file or folder; check the address")
    return sorted(system.unstrip_protocol(one) for one in found), several


def open_remote(path: str) -> BinaryIO:
    """The bytes of a file elsewhere, fetched as they are read.

    Args:
        path: its address.

    Raises:
        InputError: it cannot be reached, or a package is missing.
    """
    system = _system(path)
    try:
        return io.BufferedReader(_Raw(system.open(path, "rb")), _BLOCK)
    except Exception as error:
        raise _unreachable(path, error) from error


def version(path: str) -> str | None:
    """What tells one content of a file from another without reading it, if anything.

    Args:
        path: its address.

    Raises:
        InputError: it cannot be reached, or a package is missing.
    """
    try:
        about = _system(path).info(path)
    except InputError:
        raise
    except Exception as error:
        raise _unreachable(path, error) from error
    known = {key: str(about[key]) for key in (*_VERSIONS, *_TIMES) if about.get(key)}
    return json.dumps({"size": about.get("size"), **known}) if known else None


def _scheme(path: str) -> str:
    return path.partition("://")[0].lower() if "://" in path else ""


def _system(path: str) -> Any:
    """fsspec's file system for an address."""
    scheme = _scheme(path)
    if scheme not in PACKAGES:
        raise InputError(
            f"{path}: {scheme}:// cannot be read{suggest(scheme, PACKAGES)}"
        )
    try:
        import fsspec

        return fsspec.url_to_fs(path)[0]
    except ImportError as error:
        raise InputError(
            f"{path}: reading {scheme}:// needs a package that is missing ({error}); "
            f"pip install '{PACKAGES[scheme]}', or fetch the file"
        ) from error
    except Exception as error:
        raise _unreachable(path, error) from error


def _unreachable(path: str, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return InputError(
        f"{path}: cannot be reached ({reason}); check the address, the network and "
        "your rights to read it"
    )


class _Raw(io.RawIOBase):
    """A file of fsspec's; whatever its package raises becomes an OSError."""

    def __init__(self, file: Any):
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def readinto(self, buffer) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:
            raise OSError(str(error) or type(error).__name__) from error
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
