"""The tokenizer's own chat template: conversations -> text.

The template is run by transformers alone (its sandbox), after `template_guard` has
seen it finish on a few of the conversations.
"""

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxpeft.data.conversation import Conversation, Message
from jaxpeft.data.fixed_date import DATE_STRING, with_fixed_date
from jaxpeft.data.template_guard import FAULTS, check_template
from jaxpeft.data.tool_turns import (
    ANSWER_PROBES,
    CALL_PROBES,
    PROBE,
    adapt,
    needs_probing,
)
from jaxpeft.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Llama 3's templates write today's date into the system prompt unless it is given.
_FIXED: dict[str, Any] = {"date_string": DATE_STRING}
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatTemplate:
    """A tokenizer's chat template, and how conversations become text by it.

    Args:
        tokenizer: the model's tokenizer.

    Attributes:
        tokenizer: the model's tokenizer.
        name: the tokenizer's name or folder, for messages.
        source: the template, in Jinja.
        marks_generation: whether the template has `{% generation %}` blocks.

    Raises:
        InputError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self.tokenizer = tokenizer
        self.name = tokenizer.name_or_path or "the tokenizer"
        if not tokenizer.chat_template:
            raise InputError(
                f"{self.name}: the tokenizer has no chat template; put the "
                "chat_template.jinja of its instruction-tuned sibling into that "
                "folder, or train on plain text with format: text"
            )
        try:
            self.source: str = tokenizer.get_chat_template()
        except ValueError as error:
            raise InputError(f"{self.name}: {error}") from error
        self.marks_generation = bool(_GENERATION.search(self.source))
        self._checked = 0  # characters in the largest conversation that ended well

    def prepare(self, conversations: Sequence[Conversation]) -> list[Conversation]:
        """The conversations in the roles and keys that this template can express.

        Before the template is run here, it has to end well in a child process with the
        first and the largest of them, if only by refusing them; and again before
        conversations of more than twice that size.

        Args:
            conversations: what is to be rendered.

        Raises:
            InputError: the template is broken, hangs or explodes; with the tokenizer's
                folder.
        """
        adapted = [self._adapted(conversation) for conversation in conversations]
        sizes = [_size(conversation) for conversation in adapted]
        largest = max(range(len(adapted)), key=sizes.__getitem__)
        if not self._checked or sizes[largest] > 2 * self._checked:
            self._check([adapted[i] for i in dict.fromkeys((0, largest))])
            self._checked = sizes[largest]
        return adapted

    def _adapted(self, conversation: Conversation) -> Conversation:
        probes = needs_probing(conversation)
        if not probes and not conversation.tools:
            return conversation
        knows_calls, knows_answers = self._knows if probes else (False, False)
        return adapt(
            conversation,
            knows_tools=bool(re.search(r"\btools\b", self.source)),
            knows_calls=knows_calls,
            knows_answers=knows_answers,
        )

    @functools.cached_property
    def _knows(self) -> tuple[bool, bool]:
        """Whether the template writes calls, and answers to them."""
        self._check([*CALL_PROBES, *ANSWER_PROBES])
        calls, answers = (
            any(map(self._writes, probes)) for probes in (CALL_PROBES, ANSWER_PROBES)
        )
        return calls, answers

    def _check(self, conversations: Sequence[Conversation]) -> None:
        problem = check_template(
            with_fixed_date(self.source),
            [{"messages": c.messages, "tools": c.tools} for c in conversations],
            {**_FIXED, **self.tokenizer.special_tokens_map},
        )
        if problem is not None and problem.refused is None:
            raise InputError(
                f"{self.name}: the chat template cannot be used: {problem.text}; "
                "correct or replace chat_template.jinja there"
            )

    def _refusal(self, place: str, message: object) -> InputError:
        return InputError(
            f"{place}: the chat template of {self.name} refuses this conversation: "
            f"{message}"
        )

    def _writes(self, probe: Conversation) -> bool:
        try:
            return PROBE in self._apply([probe.messages], probe.tools, False)[0]
        except _faults():
            return False

    def render(
        self,
        conversations: Sequence[Conversation],
        places: Sequence[str],
        *,
        prompt: bool = False,
    ) -> list[str]:
        """The text that the template makes of each conversation.

        An answer at the end is ended as one that another turn follows, see `closing`.

        Args:
            conversations: what is rendered, prepared by `prepare`.
            places: where each conversation stands, for messages.
            prompt: whether to add the assistant's header at the end, after which it
                would answer.

        Raises:
            InputError: the template raises; with the row and its message.
        """
        texts = self._texts(conversations, places, prompt)
        if prompt:
            return texts
        return [
            text + self.closing if _is_answered(c) else text
            for c, text in zip(conversations, texts, strict=True)
        ]

    @functools.cached_property
    def closing(self) -> str:
        """What the template ends an answer with only if more is to follow; or nothing.

        Qwen1.5's writes the end of a turn before the next one, or before a prompt: as
        the last turn an answer would have none, and a model trained on it never stop.
        """
        talk = [{"role": role, "content": PROBE} for role in ("user", "assistant")]
        added = []
        for turns in (talk[:1], talk):
            try:
                plain, asked = (self._apply([turns], None, p)[0] for p in (False, True))
            except _faults():
                return ""
            if not asked.startswith(plain):
                return ""
            added.append(asked.removeprefix(plain))
        header, closing = added
        return closing if closing != header and header.startswith(closing) else ""

    def _texts(
        self, conversations: Sequence[Conversation], places: Sequence[str], prompt: bool
    ) -> list[str]:
        if not any(c.tools for c in conversations):
            try:
                return self._apply([c.messages for c in conversations], None, prompt)
            except _faults():
                pass  # one by one, to name the row
        texts = []
        for conversation, place in zip(conversations, places, strict=True):
            try:
                turns, tools = [conversation.messages], conversation.tools
                texts += self._apply(turns, tools, prompt)
            except _faults() as error:
                raise self._refusal(place, error) from error
        return texts

    def _apply(
        self, turns: list[list[Message]], tools: list | None, prompt: bool
    ) -> list[str]:
        if not turns:
            return []
        if tools is None and self._straight and all(map(_is_plain, turns)):
            given = {"tools": None, "documents": None, "add_generation_prompt": prompt}
            given |= self._variables
            return [self._straight.render(messages=own, **given) for own in turns]
        texts: Any = self.tokenizer.apply_chat_template(
            turns,
            tools=tools,
            chat_template=self._used(tools),
            tokenize=False,
            add_generation_prompt=prompt,
            **_FIXED,
        )
        return texts

    @functools.cached_property
    def _straight(self) -> Any:
        """The template as transformers compiles it, for what it needs not look over.

        It copies and checks every message, which takes three times as long as to
        render it, and leaves plain texts as they are. None: it is not to be had.
        """
        from transformers.utils import chat_template_utils

        compiled: Any = getattr(chat_template_utils, "_compile_jinja_template", None)
        try:
            template = None if compiled is None else compiled(self._used(None))
        except _faults():
            return None  # which the other way says
        if template is not None:
            # Jinja copies them at each rendering, which with its chain of mappings
            # takes half as long as a template.
            template.globals = dict(template.globals)
        return template

    @functools.cached_property
    def _variables(self) -> dict[str, Any]:
        return {**self.tokenizer.special_tokens_map, **_FIXED}

    def _used(self, tools: list | None) -> str:
        """The template that is run: of several, the one for tools where they are."""
        return with_fixed_date(self.tokenizer.get_chat_template(tools=tools))

    def generation_blocks(
        self, conversation: Conversation, text: str
    ) -> list[tuple[int, int]]:
        """Where the template's `{% generation %}` blocks stand in a conversation.

        Args:
            conversation: what is rendered.
            text: what the template makes of it.

        Returns:
            (first character, one past the last) of each, in their order.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered: Any = render_jinja_template(
            conversations=[conversation.messages],
            tools=conversation.tools,  # pyright: ignore[reportArgumentType]
            chat_template=self._used(conversation.tools),
            return_assistant_tokens_mask=True,
            **{**self.tokenizer.special_tokens_map, **_FIXED},
        )
        (again,), (blocks,) = rendered
        return blocks if text in (again, again + self.closing) else []


def until(conversation: Conversation, turn: int) -> Conversation:
    """The part of a conversation before message number `turn`, counted from 0."""
    return Conversation(conversation.messages[:turn], conversation.tools)


def _is_plain(messages: Sequence[Message]) -> bool:
    """Whether transformers would give a template these very messages."""
    return bool(messages) and all(
        type(message["role"]) is type(message["content"]) is str
        and (len(message) == 2 or not message.keys() - _PLAIN)
        and type(message.get("weight", 0)) in _NUMBERS
        and type(message.get("loss_weight", 0)) in _NUMBERS
        for message in messages
    )


_PLAIN = frozenset({"role", "content", "weight", "loss_weight"})
_NUMBERS = (int, float)


def _is_answered(conversation: Conversation) -> bool:
    """Whether the last message is the assistant's."""
    messages = conversation.messages
    return bool(messages) and messages[-1]["role"] == "assistant"


def _faults() -> tuple[type[Exception], ...]:
    """The errors a template can raise: its own, the sandbox's, and plain mistakes."""
    import jinja2

    return (jinja2.TemplateError, *FAULTS)


def _size(conversation: Conversation) -> int:
    return sum(len(m["content"]) + 100 for m in conversation.messages)
