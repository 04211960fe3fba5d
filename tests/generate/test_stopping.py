"""Stop texts: found wherever they fall between pieces, and nothing taken back."""

import itertools

import pytest

from jaxpeft import hf
from jaxpeft.generate import stopping

ANSWERS = ["one\n\ntwo END three", "aaab aab", "no end", "ENEND", "Grüße 🌧🌧 x", ""]
STOPS = [["END"], ["\n\n"], ["aab"], ["aaab", "aab"], ["🌧 x"], ["END", "two"], ["z"]]


@pytest.mark.parametrize("stop", STOPS, ids=repr)
def test_an_answer_is_cut_before_the_first_wherever_its_pieces_end(stop):
    for answer, size in itertools.product(ANSWERS, (1, 2, 3, 50)):
        pieces = [answer[i : i + size] for i in range(0, len(answer), size)]
        expected = answer
        for end in stop:
            expected = expected.split(end)[0]
        assert "".join(stopping.until(iter(pieces), stop)) == expected
        assert stopping.cut(answer, stop) == (expected if expected != answer else None)


def test_only_what_may_begin_a_stop_text_is_held_back():
    pieces = iter(["one E", "N", "D", "never asked for"])
    until = stopping.until(pieces, ["END"])
    assert next(until) == "one " and list(until) == []
    assert next(pieces) == "never asked for"
    assert list(stopping.until(iter(["E", "N", "d"]), ["END"])) == ["ENd"]
    assert list(stopping.until(iter(["a", "b"]), [])) == ["a", "b"]


def test_a_stop_text_that_is_a_token_of_its_own_is_found_as_one(asset_model):
    tokenizer = hf.load_tokenizer(asset_model)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stopping.token_ids(tokenizer, ["<|im_end|>", "The"]) == [end]
