"""Answers with a kept cache against answers to the whole prompt."""

import itertools

import numpy as np
import pytest

from jaxpeft.errors import InputError
from jaxpeft.generate.continuation import Continuation
from jaxpeft.generate.generation import generate
from jaxpeft.models.sampling import Sampling

FIRST = [10, 11, 12, 5, 6]
PENALISED = Sampling(repetition_penalty=1.3)


@pytest.fixture(scope="module")
def whole(llama):
    """whole(prompt, new, stop, sampling): the answer of `generate`."""

    def answer(prompt, new=8, stop=(), sampling=PENALISED, number=0):
        return generate(
            llama.params,
            llama.cfg,
            [prompt],
            max_new_tokens=new,
            stop=stop,
            sampling=sampling,
            first_request=number,
        )[0]

    return answer


def begun(llama, stop=(), sampling=PENALISED):
    return Continuation(llama.params, llama.cfg, stop, sampling)


@pytest.mark.slow
def test_turns_are_answered_as_if_read_anew(llama, whole):
    sequence, prompt = begun(llama), FIRST
    for more in ([7, 8, 9], list(range(1, 41)), [3]):
        answer = list(sequence.answer(prompt, 8))
        assert answer == whole(prompt)
        known, prompt = len(prompt) + 7, prompt + answer + more
        list(sequence.answer(prompt, 8))
        assert sequence.reused == known
        assert list(sequence.answer(prompt, 8)) == whole(prompt)
        assert sequence.reused == len(prompt) - 1
        prompt = prompt[:-2] + [50, 51]  # the end is rewritten: only that is read


def test_another_prompt_after_a_longer_one_sees_nothing_of_it(llama, whole):
    sequence = begun(llama)
    list(sequence.answer(FIRST * 6, 8))
    other = [FIRST[0], 30, 31]
    assert list(sequence.answer(other, 8)) == whole(other)
    assert sequence.reused == 1


def test_it_ends_at_a_stop_token_and_goes_on_from_there(llama, whole):
    stop = [whole(FIRST)[5]]
    sequence = begun(llama, stop)
    answer = list(sequence.answer(FIRST, 8))
    assert answer == whole(FIRST, stop=stop) == whole(FIRST)[:5]
    prompt = FIRST + answer + stop + [20, 21]
    assert list(sequence.answer(prompt, 8)) == whole(prompt, stop=stop)
    assert sequence.reused == len(FIRST) + 5


def test_an_answer_may_be_left(llama, whole):
    sequence = begun(llama)
    left = list(itertools.islice(sequence.answer(FIRST, 8), 3))
    assert left == whole(FIRST)[:3]
    prompt = FIRST + left + [4]
    assert list(sequence.answer(prompt, 8)) == whole(prompt)
    assert sequence.reused == len(FIRST) + 3


@pytest.mark.slow
def test_a_cache_that_grows_keeps_what_it_holds(make_llama, whole):
    long = make_llama(max_position_embeddings=1024)
    sequence = Continuation(long.params, long.cfg, [], Sampling())
    prompt = np.random.default_rng(0).integers(1, 61, 230).tolist()
    prompt += list(sequence.answer(prompt, 8)) + FIRST * 8
    found = list(sequence.answer(prompt, 8))
    assert sequence.reused == 237
    assert (
        found == generate(long.params, long.cfg, [prompt], max_new_tokens=8, stop=())[0]
    )


@pytest.mark.slow
def test_draws_are_those_of_the_request_s_number(llama, whole):
    drawn = Sampling(temperature=1.0, seed=4)
    sequence = begun(llama, sampling=drawn)
    for number in range(2):
        found = list(sequence.answer(FIRST, 8, number))
        assert found == whole(FIRST, sampling=drawn, number=number)


def test_what_does_not_fit_is_said_and_nothing_is_lost(llama, whole):
    sequence = begun(llama)
    first = list(sequence.answer(FIRST, 8))
    with pytest.raises(InputError, match="exceed the model's context of 128"):
        sequence.answer([1] * 121, 8)
    assert list(sequence.answer(FIRST + first, 8)) == whole(FIRST + first)
