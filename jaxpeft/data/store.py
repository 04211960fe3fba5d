"""The examples of a source, kept on disk: written once, mapped at every later start.

A store is a folder in the user's cache: a file an array (see `blocks`), and `meta.json`
with their sizes and hashes and what is to be said of the source. It is written beside
its place and renamed, so that what has its name is whole.
"""

import atexit
import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from jaxpeft import caches, console
from jaxpeft.data.blocks import Blocks, Writing
from jaxpeft.data.making import OF_EXAMPLES, OF_RECORDS, OF_TOKENS, Made
from jaxpeft.data.rejects import Rejects
from jaxpeft.errors import InputError

META, LOCK, MAKING = "meta.json", ".lock", ".making-"
UNUSED = 90 * 24 * 3600  # seconds after which a store goes
_LEFT = 24 * 3600  # seconds after which what a kill has left goes
_PLACES = 1000  # of empty answers, that are remembered of a source


@dataclass
class About:
    """What is to be said of a source, beside its arrays.

    Attributes:
        path: the source.
        rejects: the rows that cannot be used, see `Rejects.told`.
        places: {number of a record: where it stands} of the first empty ones.
        is_text: whether records are documents.
        ends: whether an example that is whole is learned to a token that ends a turn.
        is_whole: whether there is such an example, however it ends.
        largest: the largest token id.
    """

    path: str
    rejects: dict[str, Any] = field(default_factory=dict)
    places: dict[int, str] = field(default_factory=dict)
    is_text: bool = False
    ends: bool = False
    is_whole: bool = False
    largest: int = -1


@dataclass(frozen=True)
class Stored:
    """All examples of a source, in the order of its records.

    Attributes:
        arrays: those of `making.OF_TOKENS`, `OF_EXAMPLES`, `OF_RECORDS` and of the
            columns by name; `weights` only where tokens count unlike. Those of tokens
            are `Blocks`, of which slices can be read.
        about: what is to be said of the source.
        digest: a hash of all arrays.
    """

    arrays: Mapping[str, Any]
    about: About
    digest: str


class Writer:
    """Takes what the parts of a source have become, in their order.

    Args:
        path: the source.
        columns: {name: dtype} of the kind's columns.
        folder: where the files are written; None: everything stays in memory.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, path: str, columns: Mapping[str, str], folder: Path | None):
        self._folder, self.about = folder, About(path)
        self._rejects = Rejects(path)
        names = {**OF_TOKENS, **OF_EXAMPLES, **OF_RECORDS, **columns}
        self._files = {name: self._begin(name, dtype) for name, dtype in names.items()}

    def _begin(self, name: str, dtype: str) -> Writing:
        return Writing(dtype, self._folder and self._folder / f"{name}.bin")

    def append(self, made: Made) -> None:
        """Adds a part.

        Args:
            made: what it has become.

        Raises:
            OSError: the disk is full, or the like.
        """
        about = self.about
        records = self._files["counts"].size
        self._weigh(made)
        self._rejects.take(made.rejects.told())
        about.rejects = self._rejects.told()
        for name, file in self._files.items():
            file.append(made.arrays[name])
        room = _PLACES - len(about.places)
        first = {n + records: place for n, place in made.places.items()}
        about.places |= dict(list(first.items())[:room])
        about.is_text |= made.is_text
        about.ends |= made.ends
        about.is_whole |= made.is_whole
        about.largest = max(about.largest, int(made.arrays["tokens"].max(initial=-1)))

    def _weigh(self, made: Made) -> None:
        """Gives all tokens weights as soon as some have other ones than 1."""
        if "weights" in made.arrays and "weights" not in self._files:
            weights = self._begin("weights", "f4")
            before = self._files["supervised"].values()
            for at in range(0, len(before), 1 << 22):
                weights.append(before[at : at + (1 << 22)].astype("f4"))
            self._files["weights"] = weights
        if "weights" in self._files and "weights" not in made.arrays:
            made.arrays["weights"] = made.arrays["supervised"].astype("f4")

    def finish(self) -> tuple[dict[str, Any], str]:
        """Ends the files; what is to be known of them, and a hash of all."""
        known = {name: file.finish() for name, file in self._files.items()}
        return known, _digest(known)

    def abandon(self) -> None:
        """Closes the files, which are of no use."""
        for file in self._files.values():
            file.abandon()

    def in_memory(self) -> Stored:
        """What was written, where there is no folder."""
        _, digest = self.finish()
        arrays = {name: file.values() for name, file in self._files.items()}
        return Stored(arrays, self.about, digest)


def key_of(identity: Mapping[str, Any]) -> str:
    """The name of the store of what has an identity.

    Args:
        identity: all that decides which examples there are; it fits into JSON.
    """
    text = json.dumps(identity, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def opened(folder: Path) -> Stored | None:
    """The store in a folder; None: there is none, or it is damaged and now gone.

    Args:
        folder: of the store.
    """
    try:
        meta = json.loads((folder / META).read_bytes())
        if meta.pop("seal") != _seal(meta):
            raise ValueError("its list of contents is not what was written")
        about = About(**meta["about"])
        about.places = {int(n): place for n, place in about.places.items()}
        small = {*meta["arrays"]} - {*OF_TOKENS, "weights"}
        arrays = {}
        for name, known in meta["arrays"].items():
            read = Blocks(folder / f"{name}.bin", known, _damaged(folder))
            arrays[name] = read[:] if name in small else read
        with contextlib.suppress(OSError):
            os.utime(folder / META)
        return Stored(arrays, about, meta["digest"])
    except FileNotFoundError:
        if not folder.exists():
            return None
        error: Exception = OSError("a file is missing")
    except (OSError, ValueError, KeyError, TypeError, InputError) as found:
        error = found
    console.warn(f"stored examples are made anew: {folder}: {error}")
    shutil.rmtree(folder, ignore_errors=True)
    return None


def _damaged(folder: Path) -> Any:
    def give_up(what: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        raise InputError(
            f"{folder}: the stored examples are damaged ({what}), and have been "
            "deleted; repeat the command, which makes them anew and continues"
        )

    return give_up


def keep(
    root: Path, key: str, path: str, columns: Mapping[str, str], parts: Iterable[Made]
) -> Stored:
    """Makes a store where there is none, and opens it.

    Args:
        root: the folder of all stores.
        key: the store's name.
        path: the source.
        columns: {name: dtype} of the kind's columns.
        parts: what the parts of the source become, made as they are drawn.

    Raises:
        OSError: it cannot be written.
        InputError: a part raises it.
    """
    folder = root / key
    with _alone(root, key, path):
        if (found := opened(folder)) is not None:
            return found  # another has made it meanwhile
        for left in root.glob(f"{key}{MAKING}*"):
            shutil.rmtree(left, ignore_errors=True)
        beside = Path(tempfile.mkdtemp(prefix=f"{key}{MAKING}", dir=root))
        try:
            write(beside, path, columns, parts)
            os.replace(beside, folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        _forget_old(root)
    found = opened(folder)
    if found is None:
        raise OSError(f"{folder} cannot be read back")
    return found


def write(
    folder: Path, path: str, columns: Mapping[str, str], parts: Iterable[Made]
) -> None:
    """Writes the files of a store into a folder.

    Args:
        folder: an empty one.
        path: the source.
        columns: {name: dtype} of the kind's columns.
        parts: what the parts of the source become.

    Raises:
        OSError: it cannot be written.
        InputError: a part raises it.
    """
    writer = Writer(path, columns, folder)
    try:
        for made in parts:
            writer.append(made)
        arrays, digest = writer.finish()
    except BaseException:
        writer.abandon()
        raise
    finish(folder, arrays, digest, writer.about)


def finish(folder: Path, arrays: Any, digest: str, about: About) -> None:
    """Writes what is to be known of a store whose arrays are written, its last file.

    Args:
        folder: of the store.
        arrays: {name: what `Writing.finish` said of it}.
        digest: a hash of all arrays.
        about: what is to be said of the source.

    Raises:
        OSError: it cannot be written.
    """
    meta = {"arrays": arrays, "digest": digest, "about": vars(about)}
    meta = json.loads(json.dumps(meta))  # as it is read back
    meta["seal"] = _seal(meta)
    (folder / META).write_text(json.dumps(meta))


def aside(path: str, columns: Mapping[str, str], parts: Iterable[Made]) -> Stored:
    """The same without a folder to keep it in: in one that goes as the process ends.

    Args:
        path: the source.
        columns: {name: dtype} of the kind's columns.
        parts: what the parts of the source become.

    Raises:
        OSError: there is no room for it either.
        InputError: a part raises it.
    """
    folder = Path(tempfile.mkdtemp(prefix="jaxpeft-data-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write(folder, path, columns, parts)
    found = opened(folder)
    if found is None:
        raise OSError(f"{folder} cannot be read back")
    return found


@contextlib.contextmanager
def _alone(root: Path, key: str, path: str) -> Iterator[None]:
    """One process makes a store, the others wait for it."""
    root.mkdir(parents=True, exist_ok=True)
    # Where a shared file system knows no locks of the kernel, files take their place.
    warnings.filterwarnings("ignore", message="flock not supported")
    lock = filelock.FileLock(root / f"{key}{LOCK}")
    try:
        with console.waiting(f"waiting for another process to read {path}"):
            lock.acquire()
    except (RuntimeError, NotImplementedError) as error:
        raise OSError(str(error)) from error
    try:
        yield
    finally:
        lock.release()


def _forget_old(root: Path) -> None:
    """Deletes stores that nobody has opened for long, and what kills have left."""
    now = time.time()
    for folder in root.iterdir():
        with contextlib.suppress(OSError):
            if not folder.is_dir():
                continue
            is_left = MAKING in folder.name
            used = folder if is_left else folder / META
            if used.stat().st_mtime < now - (_LEFT if is_left else UNUSED):
                shutil.rmtree(folder)


class Kept(NamedTuple):
    """A store, as a list of them says it.

    Attributes:
        path: the source.
        examples: how many it has.
        tokens: the tokens in them; 0 of values of examples that are kept elsewhere.
        size: bytes.
        used: when it was last opened, in seconds since 1970.
    """

    path: str
    examples: int
    tokens: int
    size: int
    used: float


def kept(root: Path) -> list[Kept]:
    """The stores in a folder, the one used last first.

    Args:
        root: the folder of all stores.
    """
    found = []
    for file in root.glob(f"*/{META}"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            meta = json.loads(file.read_bytes())
            sizes = {name: known["size"] for name, known in meta["arrays"].items()}
            found.append(
                Kept(
                    meta["about"]["path"],
                    sizes.get("lengths", max(sizes.values())),
                    sizes.get("tokens", 0),
                    caches.size(file.parent),
                    file.stat().st_mtime,
                )
            )
    return sorted(found, key=lambda one: -one.used)


def clear(root: Path) -> int:
    """Deletes the stores in a folder and nothing else; how many bytes they had.

    Args:
        root: the folder of all stores.
    """
    freed = 0
    for file in [*root.glob(f"*/{META}"), *root.glob(f"*{MAKING}*/tokens.bin")]:
        freed += caches.clear(file.parent)
    for lock in root.glob(f"*{LOCK}"):
        with contextlib.suppress(OSError):
            lock.unlink()
    return freed


def _digest(known: Mapping[str, Any]) -> str:
    text = json.dumps(known, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _seal(meta: Mapping[str, Any]) -> str:
    return _digest({name: value for name, value in meta.items() if name != "seal"})
