"""How a task of the harness wants its answers: `generation_kwargs`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jaxpeft import hf
from jaxpeft.assembly.base import Base
from jaxpeft.errors import InputError
from jaxpeft.models.sampling import Sampling

MAX_NEW_TOKENS = 256  # where a task names no number, as in the harness
# What a task calls the number of tokens of an answer; the first that is there counts.
COUNTS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DRAWS = ("temperature", "top_k", "top_p", "repetition_penalty")
TOP_K = 50  # transformers' own, where a task that draws says nothing
# Settings that are not handled, and their values that say nothing.
NEUTRAL = {"num_beams": 1}
REMEDY = "take it out of a copy of the model's folder, and give that with --model"


@dataclass(frozen=True)
class Asking:
    """How answers are wanted.

    Attributes:
        until: texts that end one.
        max_new_tokens: the most tokens of one.
        sampling: how tokens are drawn.
    """

    until: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling


def asking_of(
    settings: Mapping[str, Any], place: str, base: Base, longest: int
) -> Asking:
    """What the settings of a request say, read as the harness's own model reads them.

    The text of the token that ends a text ends an answer, too. Where a task says
    nothing, the repetition penalty of the model's generation_config.json holds, and
    for tasks that draw its top_k and top_p.

    Args:
        settings: `until`, `max_gen_toks`, `do_sample`, ...
        place: what they are called in messages.
        base: the model.
        longest: tokens of the model's context.

    Raises:
        InputError: for other settings, and ones out of range.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    until = given.pop("until", None) or []
    texts = [until] if isinstance(until, str) else until
    counts = [given.pop(name, None) for name in COUNTS]
    count = next((n for n in counts if n is not None), MAX_NEW_TOKENS)
    count = _number(int, count, f"{place}: {COUNTS[0]}")
    draws = given.pop("do_sample", None)
    drawing = {name: given.pop(name) for name in DRAWS if name in given}
    others = [name for name, value in given.items() if value != NEUTRAL.get(name)]
    sampling = _sampling(draws, drawing, base, place)
    problems = [f"{place}: {text}" for text in sampling.problems()]
    if others:
        problems.append(
            f"{place}: found {', '.join(others)}, which are not handled; handled are "
            f"{', '.join(('until', *COUNTS, 'do_sample', *DRAWS))}"
        )
    if not 0 < count < longest:
        problems.append(
            f"{place}: max_gen_toks: found {count}; an answer and a question have to "
            f"fit into the model's context of {longest} tokens; give the task a copy "
            "with a smaller number, in --include_path"
        )
    if problems:
        raise InputError(*problems)
    eos = base.tokenizer.eos_token_id
    end = [] if eos is None else [base.tokenizer.decode([eos])]
    return Asking(tuple(filter(None, [*texts, *end])), count, sampling)


def _number(kind: Callable[[Any], Any], value: Any, name: str) -> Any:
    """A setting as the number that it has to be."""
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: found {value!r}, which is no number") from error


def _sampling(
    draws: bool | None, given: Mapping[str, Any], base: Base, place: str
) -> Sampling:
    own = hf.sampling(base.directory, REMEDY)

    def number(kind: Callable[[Any], Any], name: str, default: Any) -> Any:
        return _number(kind, given.get(name, default), f"{place}: {name}")

    warmth = number(float, "temperature", 0.0)
    penalty = number(float, "repetition_penalty", own.repetition_penalty)
    if draws is False or not warmth:
        return Sampling(repetition_penalty=penalty)
    return Sampling(
        temperature=warmth,
        top_k=number(int, "top_k", own.top_k or TOP_K),
        top_p=number(float, "top_p", own.top_p),
        repetition_penalty=penalty,
    )
