"""Answers and documents without text, of which only the end is learned."""

from collections.abc import Sequence

from jaxpeft.data.conversation import Conversation, Message, Sample, is_learned
from jaxpeft.data.sources import Row

# What a message may have beside its text without saying anything.
_SILENT = frozenset({"role", "content", "weight", "name"})


def remark(
    path: str, parsed: Sequence[tuple[Row, Sample]], *, held_out: bool
) -> list[str]:
    """A line where learned answers, or documents, are empty or blank.

    Args:
        path: the source.
        parsed: its records, and what each becomes.
        held_out: whether they are evaluated on, and not trained on.
    """
    empty = [row for row, sample in parsed if any(map(is_empty, sample.items))]
    if not empty:
        return []
    is_text = isinstance(parsed[0][1].items[0], str)
    said = "documents" if is_text else "answers"
    ending = "the text" if is_text else "its turn"
    effect = "is measured by how it ends" if held_out else "learns to end"
    which = "that row" if len(empty) == 1 else "those rows"
    return [
        f"{path}: {len(empty):,} of {len(parsed):,} {said} "
        f"{'is' if len(empty) == 1 else 'are'} empty: the model {effect} {ending} at "
        f"once; delete {which}, the first being {empty[0].place}"
    ]


def is_empty(item: Conversation | str) -> bool:
    """Whether a document, or every learned answer of a conversation, says nothing.

    An answer says something by its text, a call, or a thought in a key of its own.

    Args:
        item: what a record becomes.
    """
    if isinstance(item, str):
        return not item.strip()
    learned = [message for message in item.messages if is_learned(message)]
    return bool(learned) and not any(map(_says, learned))


def _says(message: Message) -> bool:
    beside = any(value for key, value in message.items() if key not in _SILENT)
    return beside or bool(message["content"].strip())
