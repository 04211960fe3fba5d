"""Data sets of the hub, and folders laid out like one, by the library `datasets`.

It fetches a set, unpacks it into Arrow's files in a cache of its own, and maps those
into memory. Offline the set is found there, or in the hub's cache. No code of a set is
run: since version 4 the library has no way to.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxpeft.data.sources.part import SIZE
from jaxpeft.data.sources.source import Source
from jaxpeft.data.sources.table import Table, table, texts
from jaxpeft.errors import InputError

_MOST_ROWS = 4096
_TIMEOUT = 5.0  # seconds for the hub to answer at all


def read(source: Source, folder: Path | None) -> Iterator[Table]:
    """The parts of a data set.

    Args:
        source: the data set.
        folder: where it is on this machine; None: it is the hub's.

    Raises:
        InputError: the library is missing, or the set, its configuration or its split
            is not to be had.
    """
    rows = _opened(source, folder).with_format("arrow")
    columns = texts(rows.features.arrow_schema)
    rows = rows.select_columns(columns)
    size = max(1, rows.data.nbytes // max(1, len(rows)))
    number = 1
    for batch in rows.iter(min(_MOST_ROWS, max(1, SIZE // size))):
        done = (number + batch.num_rows - 1) / len(rows)
        yield table(str(source), batch, number, done)
        number += batch.num_rows


def commit(source: Source) -> str | None:
    """The commit of a data set of the hub; None where nothing tells it.

    Args:
        source: the data set.
    """
    import huggingface_hub

    if _is_commit(source.revision):
        return source.revision
    try:
        about = huggingface_hub.HfApi().dataset_info(
            source.path, revision=source.revision, timeout=_TIMEOUT
        )
        return about.sha
    except Exception:  # noqa: BLE001  (offline, or its HTTP library's errors)
        folder = _snapshot(source)
        return folder.name if folder else None


def files(source: Source, folder: Path | None) -> list[str]:
    """The files of Arrow's in which a data set lies unpacked.

    Args:
        source: the data set.
        folder: where it is on this machine; None: it is the hub's.

    Raises:
        InputError: as of `read`.
    """
    return [file["filename"] for file in _opened(source, folder).cache_files]


def _opened(source: Source, folder: Path | None) -> Any:
    """The rows of the split, as the library has them."""
    with _quiet(source):
        builder = _local(source, folder) if folder else _of_the_hub(source)
        try:
            builder.download_and_prepare()
            if builder.info.splits is None:
                raise ValueError("it has no splits")
        except Exception as error:
            raise InputError(
                f"{source}: cannot be unpacked by `datasets` ({_first_line(error)}); "
                "check the network and the room on the disk, or convert it to jsonl"
            ) from error
        try:
            return builder.as_dataset(split=source.split or "train")
        except (ValueError, AssertionError, KeyError) as error:
            known = ", ".join(builder.info.splits)
            raise InputError(
                f"{source.path}: split {source.split or 'train'!r} is none of this "
                f"data set ({_first_line(error)}); it has {known}: set split to one of "
                "them, or a part such as train[:5%]"
            ) from error


@contextmanager
def _quiet(source: Source) -> Iterator[None]:
    """The library without its bars and warnings, which have no place in a log.

    Raises:
        InputError: it is missing.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError(
            f"{source.path}: a data set of the hub, or a folder laid out like one, "
            "needs the library datasets; pip install 'jaxpeft[datasets]'"
        ) from error
    logging = datasets.utils.logging
    level, shows = logging.get_verbosity(), datasets.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)  # it logs what it raises, too
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows:
            datasets.enable_progress_bars()


def _local(source: Source, folder: Path) -> Any:
    import datasets  # pyright: ignore[reportMissingImports]

    try:
        return datasets.load_dataset_builder(
            str(folder.resolve()), source.name, data_dir=source.data_dir
        )
    except Exception as error:
        raise InputError(
            f"{source.path}: is no data set that `datasets` can read "
            f"({_first_line(error)}); {_NAME if _is_of_name(error) else _FOLDER}"
        ) from error


_NAME = "set name to one of them"
_FOLDER = (
    "lay it out as https://huggingface.co/docs/datasets/repository_structure says, or "
    "name a file of it"
)


def _of_the_hub(source: Source) -> Any:
    """The builder of a data set of the hub, from a cache where it is not reachable."""
    import datasets  # pyright: ignore[reportMissingImports]
    import datasets.config  # pyright: ignore[reportMissingImports]

    name, revision = source.name, source.revision
    try:
        builder = datasets.load_dataset_builder(
            source.path, name, revision=revision, data_dir=source.data_dir
        )
        # Offline the library takes the newest that it has unpacked, of any revision.
        if not (revision and datasets.config.HF_HUB_OFFLINE):
            return builder
        if Path(builder.cache_dir).name == revision:
            return builder
        reason: Exception = ConnectionError(f"offline, and no copy is of {revision!r}")
    except Exception as error:
        # Besides its own they are its HTTP library's, another one in each version.
        if _is_of_name(error):
            raise InputError(f"{source.path}: {_first_line(error)}; {_NAME}") from error
        reason = error
    if folder := _snapshot(source):
        return _local(source, folder)
    raise InputError(
        f"{source.path}: is no file or folder here (looked in {Path.cwd()}), and no "
        f"data set of the hub that can be had ({_first_line(reason)}); check the "
        "spelling, the network and, for a gated one, `hf auth login`; to have it "
        f"offline, fetch it before with `hf download --repo-type dataset {source.path}`"
    ) from reason


def _snapshot(source: Source) -> Path | None:
    """The folder of a data set in the hub's cache; None: it is not there."""
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            source.path,
            repo_type="dataset",
            revision=source.revision,
            local_files_only=True,
        )
    except Exception:  # noqa: BLE001  (likewise)
        return None
    return Path(folder)


def _is_of_name(error: Exception) -> bool:
    """Whether a configuration is wanted of which the set has none."""
    text = str(error)
    return text.startswith("BuilderConfig ") or "Config name is missing" in text


def _is_commit(revision: str | None) -> bool:
    return revision is not None and len(revision) == 40 and revision.isalnum()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].startswith("Config name is missing"):
        lines = [" ".join(lines[:2])]  # the second names them
    return lines[0][:300].removesuffix(".")
