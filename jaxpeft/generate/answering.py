"""Questions in words and their answers in words, by a trained model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxpeft import adapters, hf
from jaxpeft.assembly.trained import Trained
from jaxpeft.data import documents
from jaxpeft.data.formats import Conversation
from jaxpeft.data.template import ChatTemplate
from jaxpeft.errors import InputError, suggest
from jaxpeft.generate import generation, stopping
from jaxpeft.generate.continuation import Continuation
from jaxpeft.generate.generation import generate
from jaxpeft.generate.text_stream import TextStream
from jaxpeft.models.sampling import Sampling


@dataclass(frozen=True)
class Question:
    """One request to a model.

    Attributes:
        content: a conversation for the chat template, or a text to continue as it is.
        place: what it is called in messages.
        adapter: one of the model's names, or "base"; None where there is nothing to
            choose.
    """

    content: Conversation | str
    place: str
    adapter: str | None = None


def answers(
    model: Trained,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    batch_size: int,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """The answers in the order of the questions, special tokens left out.

    They come a batch at a time; what is wrong with any question is said before the
    first.

    Args:
        model: what answers.
        questions: the requests.
        max_new_tokens: the most tokens of an answer.
        sampling: how tokens are drawn.
        batch_size: questions that are answered together.
        stop: texts that end an answer, which is cut before the first of them.

    Raises:
        InputError: see `generation.check`; also for a tokenizer without a chat
            template, and for an adapter that is none of the model's.
    """
    prompts = encoded(model, questions)
    places = [question.place for question in questions]
    generation.check(model.base.cfg, prompts, max_new_tokens, sampling, places)
    ids = stop_ids(model, stop)

    def text(tokens: list[int]) -> str:
        return model.base.tokenizer.decode(tokens, skip_special_tokens=True)

    def ended(tokens: list[int]) -> bool:
        return stopping.cut(text(tokens), stop) is not None

    def batch(start: int) -> list[list[int]]:
        rows = list(range(start, min(start + batch_size, len(prompts))))
        missing = min(batch_size, len(prompts)) - len(rows)
        used = rows + rows[:1] * missing  # so that the last batch needs no own program
        params = model.params
        if model.names:
            chosen = [questions[row].adapter or adapters.BASE for row in used]
            params = adapters.choose(params, chosen)
        continued = generate(
            params,
            model.base.cfg,
            [prompts[row] for row in used],
            max_new_tokens=max_new_tokens,
            stop=ids,
            sampling=sampling,
            first_request=start,
            ended=ended if stop else None,
        )
        return continued[: len(rows)]

    def answer(tokens: list[int]) -> str:
        whole = text(tokens)
        before = stopping.cut(whole, stop)
        return whole if before is None else before

    starts = range(0, len(prompts), batch_size)
    return (answer(tokens) for start in starts for tokens in batch(start))


def stream(
    model: Trained,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
) -> Iterator[Iterator[str]]:
    """The same as `answers`, one after another, each in pieces as its tokens arrive.

    What a prompt has in common with the one before it is not read again.

    Args:
        model: what answers.
        questions: the requests.
        max_new_tokens: the most tokens of an answer.
        sampling: how tokens are drawn.
        stop: texts that end an answer, which is cut before the first of them.

    Returns:
        The pieces of each answer.

    Raises:
        InputError: as `answers` does.
    """
    prompts = encoded(model, questions)
    places = [question.place for question in questions]
    generation.check(model.base.cfg, prompts, max_new_tokens, sampling, places)
    sequences: dict[str | None, Continuation] = {}

    def pieces(number: int) -> Iterator[str]:
        name = questions[number].adapter
        if name not in sequences:
            sequences.clear()  # one cache at a time
            sequences[name] = continuation(model, sampling, name, stop)
        tokens = sequences[name].answer(prompts[number], max_new_tokens, number)
        return in_pieces(model, tokens, stop)

    return map(pieces, range(len(questions)))


def continuation(
    model: Trained,
    sampling: Sampling,
    adapter: str | None = None,
    stop: Sequence[str] = (),
) -> Continuation:
    """A sequence that the model continues, with one of its adapters.

    Args:
        model: what answers.
        sampling: how tokens are drawn.
        adapter: one of the model's names; None: the base, where there are names.
        stop: texts of which those that are tokens of their own end an answer.
    """
    params = model.params
    if model.names:
        params = adapters.choose(params, [adapter or adapters.BASE])
    ids = stop_ids(model, stop)
    return Continuation(params, model.base.cfg, ids, sampling)


def stop_ids(model: Trained, stop: Sequence[str]) -> list[int]:
    """The tokens that end an answer: the model's own, and stop texts that are tokens.

    Args:
        model: what answers.
        stop: texts that end an answer.
    """
    own = hf.stop_ids(model.base.directory, model.base.tokenizer)
    return sorted({*own, *stopping.token_ids(model.base.tokenizer, stop)})


def in_pieces(
    model: Trained, tokens: Iterator[int], stop: Sequence[str] = ()
) -> Iterator[str]:
    """The text of tokens while they arrive, see `TextStream`.

    Args:
        model: whose tokenizer decodes them.
        tokens: ids, one at a time.
        stop: texts that end it, before the first of which it is cut.
    """
    return stopping.until(_decoded(model, tokens), stop)


def _decoded(model: Trained, tokens: Iterator[int]) -> Iterator[str]:
    text = TextStream(model.base.tokenizer)
    for token in tokens:
        if piece := text.push(token):
            yield piece
    if piece := text.end():
        yield piece


def encoded(model: Trained, questions: Sequence[Question]) -> list[list[int]]:
    """The tokens that the model is to continue for each question.

    Args:
        model: whose tokenizer and chat template are used.
        questions: the requests.

    Raises:
        InputError: for a tokenizer without a chat template, and for an adapter that is
            none of the model's.
    """
    tokenizer, prompts = model.base.tokenizer, {}
    _check_adapters(model, questions)
    contents = [question.content for question in questions]
    talks = {i: c for i, c in enumerate(contents) if isinstance(c, Conversation)}
    if talks:
        template, places = ChatTemplate(tokenizer), [questions[i].place for i in talks]
        prepared = template.prepare(list(talks.values()))
        texts = template.render(prepared, places, prompt=True)
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        prompts.update(zip(talks, ids, strict=True))
    texts = {i: c for i, c in enumerate(contents) if isinstance(c, str)}
    if texts:
        ids = documents.encode(list(texts.values()), tokenizer)
        prompts.update(zip(texts, ids, strict=True))
    return [prompts[i] for i in range(len(questions))]


def _check_adapters(model: Trained, questions: Sequence[Question]) -> None:
    """Checks that each question's adapter is there; raises InputError otherwise."""
    known = [*model.names, adapters.BASE] if model.names else []
    problems = []
    for question in questions:
        name = question.adapter
        if name is None or name in known:
            continue
        remedy = suggest(name, known) or "; load adapters with --adapter NAME=DIR"
        problems.append(f"{question.place}: adapter: {name!r} is none of them{remedy}")
    if problems:
        raise InputError(*problems)
