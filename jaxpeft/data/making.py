"""A part of a source -> the arrays of its examples: what a worker does."""

import dataclasses
import functools
import hashlib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpeft.data import empty_answers, formats, held_out
from jaxpeft.data.kinds import Kind
from jaxpeft.data.rejects import Rejects
from jaxpeft.data.render import Example, Renderer, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from jaxpeft.data.sources import Part

_PLACES = 64  # of empty answers, that are remembered of a part

# What an example is told by beside its tokens, and what a record is: names and dtypes.
OF_TOKENS = {"tokens": "i4", "supervised": "?"}
OF_EXAMPLES = {"lengths": "i8", "left_out": "i4", "learned": "i4"}
OF_RECORDS = {"counts": "i4", "hashes": "V32", "empty": "?"}


@dataclass(frozen=True)
class Recipe:
    """What decides which examples records become, beside the tokenizer.

    Attributes:
        format: how a record is laid out, a name of `kind.readers`.
        fields: the format's name for a column -> the file's.
        kind: what records become.
        max_length: tokens in an example.
        train_on: "assistant" or "all".
        split: whether documents over `max_length` become several examples.
    """

    format: str
    fields: Mapping[str, str | None] | None
    kind: Kind
    max_length: int
    train_on: str
    split: bool

    def identity(self) -> dict[str, Any]:
        """What changes where records may become other examples; it fits into JSON."""
        kind = self.kind
        # All that a kind says in words and numbers; its functions go by their modules.
        said = {f.name: getattr(kind, f.name) for f in dataclasses.fields(kind)}
        plain = (str, int, bool, type(None))
        return {
            "format": self.format,
            "fields": dict(self.fields or {}),
            "kind": {name: x for name, x in said.items() if isinstance(x, plain)},
            "columns": dict(kind.columns),
            "max_length": self.max_length,
            "train_on": self.train_on,
            "split": self.split,
            "code": _code(inspect.getmodule(_inner(kind.readers[self.format]))),
        }


@dataclass
class Made:
    """What a part of a source has become.

    Attributes:
        arrays: those of `OF_TOKENS`, `OF_EXAMPLES`, `OF_RECORDS` and the columns by
            name; `weights` where tokens count unlike.
        rejects: the rows that cannot be used.
        places: {number of a record: where it stands} of the first empty ones.
        is_text: whether records are documents.
        ends: whether an example that is whole is learned to a token that ends a turn.
        is_whole: whether there is such an example, however it ends.
    """

    arrays: dict[str, np.ndarray]
    rejects: Rejects
    places: dict[int, str] = field(default_factory=dict)
    is_text: bool = False
    ends: bool = False
    is_whole: bool = False


class Maker:
    """Makes examples of parts of a source, one part after another.

    Args:
        recipe: what records become.
        tokenizer: the model's tokenizer, with its chat template.

    Raises:
        InputError: the tokenizer is none that can be used.
    """

    def __init__(self, recipe: Recipe, tokenizer: "PreTrainedTokenizerBase"):
        self._recipe = recipe
        self._renderer = Renderer(
            tokenizer,
            max_length=recipe.max_length,
            train_on=recipe.train_on,
            split=recipe.split,
            kind=recipe.kind,
        )
        self._special = special_ids(tokenizer)

    def make(self, part: "Part", path: str, *, renders: bool = True) -> Made:
        """The examples of a part.

        Args:
            part: of the source.
            path: the source, for messages.
            renders: whether to make them; otherwise the rows are looked at only.

        Raises:
            InputError: the file, the format or the template cannot be used.
        """
        rejects, recipe = Rejects(path, skip=True), self._recipe
        rejects.rows = part.count
        rows = part.rows(rejects)
        parsed = formats.readable(
            rows, recipe.format, recipe.fields, rejects, recipe.kind
        )
        samples = [sample for _, sample in parsed]
        empty = np.array([empty_answers.has_empty(s) for s in samples], bool)
        counts = np.zeros(len(parsed), np.int32)
        examples: list[Example] = []
        if renders:
            places = [row.place for row, _ in parsed]
            for number, own in self._renderer.render(samples, places, rejects):
                counts[number] = len(own)
                examples += own
        hashes = np.array([held_out.hashed(*one) for one in parsed], "V32")
        found = np.flatnonzero(empty)[:_PLACES].tolist()
        arrays = arrays_of(examples, recipe.kind.columns)
        learned = arrays["learned"].tolist()
        whole = [e for e, n in zip(examples, learned) if n and not e.left_out]
        return Made(
            arrays={**arrays, "counts": counts, "hashes": hashes, "empty": empty},
            rejects=rejects,
            places={n: parsed[n][0].place for n in found},
            is_text=bool(samples) and isinstance(samples[0].items[0], str),
            ends=any(self._ends(example) for example in whole),
            is_whole=bool(whole),
        )

    def _ends(self, example: Example) -> bool:
        last = np.flatnonzero(example.supervised)[-1]
        return bool((self._special == example.tokens[last]).any())


def arrays_of(
    examples: Sequence[Example], columns: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """The arrays of `OF_TOKENS`, `OF_EXAMPLES` and the columns.

    Args:
        examples: in their order.
        columns: {name: dtype} of the columns.
    """

    def end_to_end(arrays: Sequence[np.ndarray], dtype: str) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *arrays])

    made = {
        "tokens": end_to_end([e.tokens for e in examples], "i4"),
        "supervised": end_to_end([e.supervised for e in examples], "?"),
        "lengths": np.array([len(e.tokens) for e in examples], np.int64),
        "left_out": np.array([e.left_out for e in examples], np.int32),
    }
    before = np.append(0, np.cumsum(made["supervised"]))
    stops = np.cumsum(made["lengths"])
    learned = before[stops] - before[stops - made["lengths"]]
    made["learned"] = learned.astype(np.int32)
    for name, dtype in columns.items():
        made[name] = np.array([e.columns[name] for e in examples], dtype)
    if any(e.weights is not None for e in examples):
        weights = [e.supervised if e.weights is None else e.weights for e in examples]
        made["weights"] = end_to_end(weights, "f4").astype("f4")
    return made


def _inner(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


@functools.cache
def _code(reader: Any) -> str:
    """A hash of the modules that have a say in what is stored.

    Args:
        reader: the module of the format's reader.
    """
    digest = hashlib.blake2b(digest_size=16)
    data = Path(importlib.import_module("jaxpeft.data").__file__ or "").parent
    own = getattr(reader, "__file__", None)
    for path in (*sorted(data.rglob("*.py")), *([Path(own)] if own else [])):
        digest.update(path.read_bytes())
    return digest.hexdigest()
