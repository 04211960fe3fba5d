"""What a record becomes, by what an objective wants of it.

An objective names a kind: which formats there are and what reads their records, the
values that an example has beside its tokens, and how many examples a record makes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxpeft.data.columns import Fields, Record
from jaxpeft.data.conversation import Conversation, Sample

Reader = Callable[[Record, Fields], Sample | Conversation | str]


def unchecked(path: str, examples: Any) -> list[str]:
    """Nothing to say of a source's examples.

    Args:
        path: the source.
        examples: what was made of it, `data.Examples`.
    """
    return []


@dataclass(frozen=True)
class Kind:
    """A record of what an objective wants made of a data set's records.

    Its functions are those of modules, or `functools.partial` of such, so that a worker
    process can be given them.

    Attributes:
        name: changes with whatever makes the readers give something else, such as the
            names of the classes: stored examples are found by it.
        readers: the name of a format -> what reads its records.
        fields: the name of a format -> the names of columns that `fields` may map.
        columns: {name: dtype} of the values that every example has, such as
            {"margin": "float32"}; they come as (rows,) arrays in a batch.
        together: how many examples a record makes, which are always drawn together:
            with 2, rows 2i and 2i + 1 of a batch are one record's.
        cuts: where an example over max_length is cut: at its "end", or in the "prompt",
            whose beginning is left out so that the answer stays. Half of max_length is
            the prompt's in any case, and examples of a record are cut alike.
        weighs: whether records may have a column `weight`, what they count in the loss.
        train_on: which turns count, whatever data.train_on says; None: as that says.
        ends_documents: whether a document is ended with the tokenizer's eos.
        check: (path, `data.Examples` of a source) -> what a user should know of them;
            it may raise InputError.
    """

    name: str
    readers: Mapping[str, Reader]
    fields: Mapping[str, tuple[str, ...]]
    columns: Mapping[str, str] = field(default_factory=dict)
    together: int = 1
    cuts: Literal["end", "prompt"] = "end"
    weighs: bool = False
    train_on: Literal["assistant", "all"] | None = None
    ends_documents: bool = True
    check: Callable[[str, Any], list[str]] = unchecked
