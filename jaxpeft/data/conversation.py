"""A conversation: what the formats of data give, and what chat templates take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxpeft.errors import InputError

Message = dict[str, Any]

_MAY_FOLLOW = {
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}


@dataclass(frozen=True)
class Conversation:
    """A conversation, as a chat template renders it.

    Attributes:
        messages: {"role": system|user|assistant|tool, "content": str, ...} for each
            message. A sharegpt function call is an assistant message whose content is
            the call's JSON, marked with "function_call": True. An assistant's message
            with "weight": 0 is not learned; its "loss_weight" is what each of its
            tokens counts in the loss.
        tools: JSON schemas of the functions that the assistant may call; None: there
            are none.
    """

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Sample:
    """What a record becomes, if that is more than one conversation or document.

    Attributes:
        items: the conversations or documents, each of which makes an example; as many
            as `Kind.together`, where that is more than 1.
        columns: a value for each of `Kind.columns`, which all its examples have.
        weight: what each of its tokens counts in the loss.
    """

    items: tuple[Conversation | str, ...]
    columns: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0

    @classmethod
    def of(cls, value: "Sample | Conversation | str") -> "Sample":
        """A sample of what a format's reader gives, which may be its one item."""
        return value if isinstance(value, Sample) else cls((value,))


def weight_of(message: Message) -> float:
    """What each token of a message counts in the loss, if it is learned."""
    return 1.0 if message.get("loss_weight") is None else message["loss_weight"]


def is_learned(message: Message) -> bool:
    """Whether a message is an assistant's, and not one of weight 0."""
    return (
        message["role"] == "assistant"
        and message.get("weight", 1) != 0
        and weight_of(message) != 0
    )


def checked(
    turns: Sequence[Message],
    tools: list[dict[str, Any]] | None = None,
    *,
    system: str = "",
) -> Conversation:
    """The conversation of a record's turns, once they are known to alternate.

    Args:
        turns: the messages as the record has them, perhaps with a system prompt first.
            In messages of errors they are counted from 1.
        tools: JSON schemas of the functions on offer.
        system: a system prompt that stands beside the turns; empty: there is none.

    Raises:
        InputError: there is no turn, roles do not alternate, the last turn is not the
            assistant's, or there are two system prompts.
    """
    first = 1 if turns and turns[0]["role"] == "system" else 0
    if first and system and system != turns[0]["content"]:
        raise InputError(
            "the column of the system prompt and the first turn both hold one, and "
            "they differ; delete one of the two, or switch the column off with "
            "fields: {system: null}"
        )
    if len(turns) == first:
        raise InputError("the conversation is empty")
    allowed, before = ("user",), "the start"
    for number, message in enumerate(turns[first:], first + 1):
        role = message["role"]
        if role not in allowed:
            raise InputError(
                f"roles do not alternate: turn {number} is {role!r} after {before}; "
                f"expected {' or '.join(allowed)}"
            )
        allowed = _MAY_FOLLOW[role]
        before = repr(role)
    if turns[-1]["role"] != "assistant":
        raise InputError(
            f"the last turn is {turns[-1]['role']!r}; it has to be the assistant's, "
            "which is what training learns"
        )
    prompt: list[Message] = [{"role": "system", "content": system}] if system else []
    return Conversation([*prompt, *turns[first if system else 0 :]], tools)
