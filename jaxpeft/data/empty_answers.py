"""Answers and documents without text, of which only the end is learned."""

from jaxpeft.data.conversation import Conversation, Message, Sample, is_learned

# What a message may have beside its text without saying anything.
_SILENT = frozenset({"role", "content", "weight", "name"})


def remark(
    path: str, empty: int, records: int, first: str, *, is_text: bool, held_out: bool
) -> list[str]:
    """A line where learned answers, or documents, are empty or blank.

    Args:
        path: the source.
        empty: how many of its records have one.
        records: how many it has.
        first: where the first of the empty ones stands.
        is_text: whether records are documents.
        held_out: whether they are evaluated on, and not trained on.
    """
    if not empty:
        return []
    said = "documents" if is_text else "answers"
    ending = "the text" if is_text else "its turn"
    effect = "is measured by how it ends" if held_out else "learns to end"
    which = "that row" if empty == 1 else "those rows"
    return [
        f"{path}: {empty:,} of {records:,} {said} {'is' if empty == 1 else 'are'} "
        f"empty: the model {effect} {ending} at once; delete {which}, the first being "
        f"{first}"
    ]


def has_empty(sample: Sample) -> bool:
    """Whether one of a sample's documents or conversations says nothing."""
    return any(map(is_empty, sample.items))


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
