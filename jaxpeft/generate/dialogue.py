"""A conversation with a trained model, turn by turn."""

from collections.abc import Iterator, Sequence

from jaxpeft.assembly.trained import Trained
from jaxpeft.data.formats import Conversation, Message
from jaxpeft.generate.answering import Question, continuation, encoded, in_pieces
from jaxpeft.models.sampling import Sampling


class Dialogue:
    """Turns of a user and their answers, through the tokenizer's chat template.

    Each turn's prompt is the whole conversation; what the model has read or written of
    it before is not computed again, as long as the template begins with the same text
    (some leave out earlier turns' reasoning: then all after it is read anew).

    Args:
        model: what answers.
        system: the system message, or None.
        max_new_tokens: the most tokens of an answer.
        sampling: how tokens are drawn.
        stop: texts that end an answer, which is cut before the first of them.

    Attributes:
        messages: the conversation so far.
    """

    def __init__(
        self,
        model: Trained,
        *,
        system: str | None,
        max_new_tokens: int,
        sampling: Sampling,
        stop: Sequence[str] = (),
    ):
        self._model, self._max_new_tokens = model, max_new_tokens
        self._stop = stop
        self._sequence = continuation(model, sampling, stop=stop)
        self._first: list[Message] = []
        if system:
            self._first = [{"role": "system", "content": system}]
        self._turns = 0
        self.messages = list(self._first)

    @property
    def reused(self) -> int:
        """The number of tokens of the last prompt that were not read again."""
        return self._sequence.reused

    def say(self, text: str) -> Iterator[str]:
        """The answer to the user's next message, in pieces.

        If it is left before its end the conversation goes on from there.

        Args:
            text: the message.

        Raises:
            InputError: where there is no room; then the message was never said.
        """
        question = {"role": "user", "content": text}
        talk = Conversation([*self.messages, question])
        (prompt,) = encoded(self._model, [Question(talk, "the conversation")])
        tokens = self._sequence.answer(prompt, self._max_new_tokens, self._turns)
        return self._said(question, in_pieces(self._model, tokens, self._stop))

    def _said(self, question: Message, pieces: Iterator[str]) -> Iterator[str]:
        answer = ""
        self._turns += 1
        try:
            for piece in pieces:
                answer += piece
                yield piece
        finally:
            reply = {"role": "assistant", "content": answer}
            self.messages += [question, reply]

    def reset(self) -> None:
        """Forgets everything but the system message."""
        self.messages = list(self._first)
