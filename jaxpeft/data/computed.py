"""A value of each example that was computed once, kept beside the stored examples."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxpeft import console
from jaxpeft.data import store, stored_source
from jaxpeft.data.blocks import Writing

if TYPE_CHECKING:
    from jaxpeft.config import DataSection

VALUES = "values"  # the one array of such a store


def read(section: "DataSection", key: str, count: int) -> np.ndarray | None:
    """The values that are kept; None: there are none, or they are damaged.

    Args:
        section: the configuration's section `data`, which says where.
        key: of `store.key_of`, with all that decides the values.
        count: how many there should be.

    Returns:
        (examples,), or None.
    """
    root = stored_source.root_of(section)
    found = None if root is None else store.opened(root / key)
    values = None if found is None else found.arrays.get(VALUES)
    if values is None or len(values) != count:
        return None
    return np.array(values)


def keep(section: "DataSection", key: str, values: np.ndarray, about: str) -> None:
    """Keeps values for later starts; where that fails it is told.

    Args:
        section: the configuration's section `data`, which says where.
        key: as of `read`.
        values: (examples,).
        about: what they are, for the list of what is kept.
    """
    root = stored_source.root_of(section)
    if root is None:
        return
    try:
        _write(root, key, values, about)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        console.warn(
            f"the {about} are not stored in {root}: {reason}; they are computed anew "
            "at every start: set data.cache_dir to a folder that can be written and "
            "has room"
        )


def _write(root: Path, key: str, values: np.ndarray, about: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f"{key}{store.MAKING}", dir=root))
    try:
        file = Writing(values.dtype, beside / f"{VALUES}.bin")
        file.append(values)
        arrays = {VALUES: file.finish()}
        store.finish(beside, arrays, store.key_of(arrays), store.About(about))
        # Where there is one by now, another process has computed the same.
        with contextlib.suppress(OSError):
            os.replace(beside, root / key)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
