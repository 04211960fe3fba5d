"""The examples of a source: from its store, or made and stored."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxpeft import caches, console
from jaxpeft.data import sources, store, workers
from jaxpeft.data.making import Made, Recipe
from jaxpeft.data.rejects import Rejects
from jaxpeft.data.sources import Source, found, source_of
from jaxpeft.data.store import Stored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from jaxpeft.config import DataSection, SourceSection

FOLDER, KNOWN = "examples", "sources.json"
SMALL = 2 << 20  # bytes of files that are read sooner than anything is looked up
_MOMENT = 2.0  # seconds within which a file may change and look the same
_MOST_KNOWN = 1000
# What decides, beside our own code, which tokens a text becomes.
_LIBRARIES = ("transformers", "tokenizers", "jinja2")


def of_source(
    source: "SourceSection",
    section: "DataSection",
    recipe: Recipe,
    tokenizer: "PreTrainedTokenizerBase",
) -> Stored:
    """All examples of a source, of both sides of `data.eval_split`.

    Args:
        source: an entry of `data.train` or `data.eval`.
        section: the configuration's section `data`.
        recipe: what its records become.
        tokenizer: the model's tokenizer, with its chat template.

    Raises:
        InputError: something is wrong with the files, records, template or tokens.
    """
    origin, columns = source_of(source), recipe.kind.columns
    count = section.num_workers or workers.default()

    def parts() -> Iterator[Made]:
        return _parts(origin, source.max_samples, section, recipe, tokenizer, count)

    root = root_of(section)
    if _is_small(origin):
        writer = store.Writer(str(origin), columns, None)
        for made in parts():
            writer.append(made)
        return writer.in_memory()
    if root is not None:
        identity = {
            "source": _identity(origin, root),
            "max_samples": source.max_samples,
            "on_error": section.on_error,
            "recipe": recipe.identity(),
            "tokenizer": _of_tokenizer(tokenizer),
        }
        key = store.key_of(identity)
        found = store.opened(root / key)
        if found is not None:
            return found
        try:
            return store.keep(root, key, str(origin), columns, parts())
        except OSError as error:
            _warn(root, error)
    try:
        return store.aside(str(origin), columns, parts())
    except OSError:
        # Not there either: as if it were small.
        writer = store.Writer(str(origin), columns, None)
        for made in parts():
            writer.append(made)
        return writer.in_memory()


def _parts(
    origin: Source,
    max_samples: int | None,
    section: "DataSection",
    recipe: Recipe,
    tokenizer: "PreTrainedTokenizerBase",
    count: int,
) -> Iterator[Made]:
    """What the parts of a source become; in the end, what is wrong with all of them."""
    rejects = Rejects(str(origin), skip=section.on_error == "skip")
    files = max(1, len(found(origin).files))
    records = read = 0
    with console.Work(
        f"reading and tokenizing {origin}, records", 1, rated=True
    ) as work:
        for part, made in workers.make(
            sources.parts(origin, max_samples),
            recipe,
            tokenizer,
            str(origin),
            workers=count,
            stops=not rejects.skip,
        ):
            records += part.count
            share = (read + part.done) / files
            read += part.done == 1
            rejects.take(made.rejects.told())
            yield made
            total = max(records, round(records / max(share, 1e-6)))
            work.advance(part.count, min(total, max_samples or total))
    rejects.settle(records)


def root_of(section: "DataSection") -> Path | None:
    """The folder of all stores; None: nothing is kept.

    Args:
        section: the configuration's section `data`.
    """
    if section.cache_dir is not None:
        return Path(section.cache_dir).expanduser().absolute()
    root = caches.root()
    return root and root / FOLDER


def _sizes(origin: Source) -> list[os.stat_result] | None:
    """Of the files of a source, if it is files that are here."""
    where = found(origin)
    if where.is_dataset:
        return None
    try:
        return [os.stat(file) for file in where.files]
    except OSError:
        return None


def _is_small(origin: Source) -> bool:
    stats = _sizes(origin)
    return stats is not None and sum(stat.st_size for stat in stats) < SMALL


def _identity(origin: Source, root: Path) -> str:
    """`sources.identity`, remembered of files that have not been touched since."""
    stats = _sizes(origin)
    if stats is None:
        return sources.identity(origin)
    seen = [
        [os.path.abspath(file), stat.st_size, stat.st_mtime_ns, stat.st_ino]
        for file, stat in zip(found(origin).files, stats, strict=True)
    ]
    key, known = store.key_of({"files": seen}), _known(root)
    if key in known:
        return known[key]
    identity = sources.identity(origin)
    if max(stat.st_mtime for stat in stats) < time.time() - _MOMENT:
        kept = dict([*known.items(), (key, identity)][-_MOST_KNOWN:])
        with contextlib.suppress(OSError):
            root.mkdir(parents=True, exist_ok=True)
            handle, beside = tempfile.mkstemp(dir=root)
            with os.fdopen(handle, "w") as file:
                json.dump(kept, file)
            os.replace(beside, root / KNOWN)
    return identity


def _known(root: Path) -> dict[str, str]:
    with contextlib.suppress(OSError, ValueError):
        known = json.loads((root / KNOWN).read_bytes())
        if isinstance(known, dict) and all(isinstance(v, str) for v in known.values()):
            return known
    return {}


def _of_tokenizer(tokenizer: Any) -> list[Any]:
    """What changes where a tokenizer may make other tokens of a text."""
    behind = getattr(tokenizer, "backend_tokenizer", None)
    text = "" if behind is None else behind.to_str()
    return [
        hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        type(tokenizer).__name__,
        [importlib.metadata.version(name) for name in _LIBRARIES],
    ]


def _warn(root: Path, error: OSError) -> None:
    reason = error.strerror or str(error) or type(error).__name__
    console.warn(
        f"tokenized examples are not stored in {root}: {reason}; they are made anew at "
        "every start: set data.cache_dir to a folder that can be written and has room"
    )
