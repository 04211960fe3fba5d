"""Kahneman-Tversky optimisation: mismatched rows, and what cuts and padding do."""

import jax
import numpy as np
import pytest

from jaxpeft.errors import InputError
from jaxpeft.objectives.kto import in_words, mismatched, report


def rows(*examples, seq):
    """A batch of (prompt, answer) lists of tokens; an empty one is padding."""
    made = {n: np.zeros((len(examples), seq), np.int32) for n in ("tokens", "targets")}
    made["positions"] = np.zeros((len(examples), seq), np.int32)
    made["supervised"] = np.zeros((len(examples), seq), bool)
    for i, (prompt, answer) in enumerate(examples):
        whole = [*prompt, *answer][:seq]
        n = len(whole)
        made["tokens"][i, :n] = whole
        made["targets"][i, : max(n - 1, 0)] = whole[1:]
        made["positions"][i, :n] = range(n)
        made["supervised"][i, max(len(prompt) - 1, 0) : max(n - 1, 0)] = True
    return made


def test_each_prompt_gets_the_answer_of_the_row_before():
    parts = [([1, 2, 3], [4, 5]), ([6, 7], [8, 9, 10]), ([11], [12])]
    empty = ([], [])
    given = rows(*parts, empty, seq=8)
    found = jax.jit(mismatched)(given)
    crossed = [(p, parts[i - 1][1]) for i, (p, _) in enumerate(parts)]
    expected = rows(*crossed, empty, seq=8)
    for name in ("supervised", "positions"):
        np.testing.assert_array_equal(found[name], expected[name])
    inside = expected["supervised"]
    np.testing.assert_array_equal(found["targets"][inside], expected["targets"][inside])
    for i, (prompt, answer) in enumerate(crossed):
        n = len(prompt) + len(answer)
        np.testing.assert_array_equal(found["tokens"][i, :n], [*prompt, *answer])


def test_what_does_not_fit_into_the_row_is_cut_off():
    given = rows(([1, 2, 3, 4], [5]), ([6], [7, 8, 9, 10]), seq=5)
    found = mismatched(given)
    np.testing.assert_array_equal(found["tokens"][0], [1, 2, 3, 4, 7])
    np.testing.assert_array_equal(found["tokens"][1, :2], [6, 5])
    np.testing.assert_array_equal(found["supervised"].sum(axis=1), [1, 1])


def test_one_row_is_too_few():
    with pytest.raises(InputError, match="a micro-batch has 1 row"):
        mismatched(rows(([1], [2]), seq=4))


def test_answers_of_one_label_have_no_figures_of_the_other():
    sums = {"loss": (1.5, 3.0), "kl": (0.3, 3.0), "rewards/margins": (0.0, 0.0)}
    for name, counted in (("chosen", 3.0), ("rejected", 0.0)):
        sums |= {f"rewards/{name}": (0.6, counted), f"logps/{name}": (-9.0, counted)}
    one = report(sums)
    assert set(one) == {
        *("eval_loss", "eval_kl", "eval_answers"),
        *("eval_rewards/chosen", "eval_logps/chosen"),
    }
    assert in_words(one) == "loss 0.5000, answers of one label alone"
    both = report(sums | {"rewards/rejected": (-0.4, 2.0), "logps/rejected": (-8, 2.0)})
    assert both["eval_rewards/margins"] == pytest.approx(0.6 / 3 + 0.4 / 2)
