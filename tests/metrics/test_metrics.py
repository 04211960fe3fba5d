"""Metrics beside the scripts and packages that the field computes them with."""

import importlib.util
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpeft import metrics
from jaxpeft.config.evaluation import MetricSection
from jaxpeft.errors import InputError
from jaxpeft.metrics.exact_match import exact_match, number
from jaxpeft.metrics.rouge_l import common_length
from jaxpeft.metrics.rouge_l import f1 as rouge_f1
from jaxpeft.metrics.token_f1 import f1 as token_f1

TEXTS = st.text(st.sampled_from("ab cdA B,.é1\n'"), max_size=24)
WORDS = st.lists(st.sampled_from(["the", "a", "Cat", "cat,", "sat", "an.", "12"]))
PAIRS = [
    (
        "The Mill is a cheap pub near Café Rouge.",
        "The Mill is a cheap, family-friendly pub by Café Rouge.",
    ),
    ("18", "#### 18"),
    ("", "a"),
    ("it isn't over 3,000!", "It isn't over 3000"),
]


def longest(one, other):
    """The length of the longest common subsequence, by the usual table."""
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            best = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else best
    return table[-1][-1]


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3)))
def test_the_longest_common_subsequence_is_that_of_the_table(one, other):
    assert common_length(one, other) == longest(one, other)


def test_rouge_l_is_what_rouge_score_0_1_2_gives():
    found = [rouge_f1(*pair) for pair in PAIRS]
    assert found == pytest.approx([0.8, 1.0, 0.0, 0.7272727272727272])


@pytest.mark.slow
def test_rouge_l_is_rouge_score_s():
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])

    @given(TEXTS, TEXTS)
    def same(answer, reference):
        theirs = scorer.score(reference, answer)["rougeL"].fmeasure
        assert rouge_f1(answer, reference) == pytest.approx(theirs)

    same()


@given(WORDS, WORDS)
def test_token_f1_is_that_of_the_words_in_common(one, other):
    answer, reference = " ".join(one), " ".join(other)
    ours, theirs = (
        [w.strip(",.").lower() for w in words if w.strip(".") not in ("the", "a", "an")]
        for words in (one, other)
    )
    left = list(theirs)
    common = [word for word in ours if word in left and not left.remove(word)]
    if not common:
        expected = float(ours == theirs)
    else:
        precision, recall = len(common) / len(ours), len(common) / len(theirs)
        expected = 2 * precision * recall / (precision + recall)
    assert token_f1(answer, reference) == pytest.approx(expected)


def test_token_f1_of_squad():
    found = token_f1("in the city of Kraków, Poland", "Kraków")
    assert found == pytest.approx(2 * 1 / (5 + 1))
    assert token_f1("the Cat, sat", "a cat sat down") == pytest.approx(0.8)
    assert token_f1("The.", "an") == 1 and token_f1("", "cat") == 0


@pytest.mark.parametrize(
    ("text", "gsm8k", "last"),
    [
        ("5 + 5 = 10\n#### 1,010", "1010", "1010"),
        ("#### -3.5 and 4", "-3.5", "-3.5"),
        ("the answer is $18.00, not 20.", None, "20"),
        ("####18", None, "18"),
        ("nothing", None, None),
    ],
)
def test_the_number_of_an_answer(text, gsm8k, last):
    assert number(text, "gsm8k") == gsm8k
    assert number(text, "last_number") == last


def test_exact_match_and_what_it_ignores():
    assert exact_match().each(" Yes\n", "Yes") == 1
    assert exact_match().each("yes.", "Yes") == 0
    assert exact_match(ignore_case=True, ignore_punctuation=True).each("yes.", "Yes")
    of_numbers = exact_match(extract="gsm8k")
    assert of_numbers.each("so #### 1,000", "#### 1000") == 1
    assert of_numbers.each("so 1000", "#### 1000") == 0
    assert not of_numbers.wrong("#### 7") and "'#### ' and" in of_numbers.wrong("seven")


def test_bleu_and_chrf_are_sacrebleu_s():
    pytest.importorskip("sacrebleu")
    made = metrics.made([], ["bleu", "chrf"])
    answers, references = zip(*PAIRS)
    found = [one.figure([], answers, references) for one in made.values()]
    assert found == pytest.approx([29.211728472860294, 54.957770014277386])
    assert made["bleu"].each(*PAIRS[0]) > 0


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("bleu", "chrf"):
        with pytest.raises(InputError, match=rf"metric {name}: .* 'jaxpeft\[eval\]'"):
            metrics.made([], [name])


def test_a_choice_that_is_none_is_told():
    (metric,) = metrics.made(
        [MetricSection.model_validate({"name": "choice_accuracy", "choices": ("A",)})]
    ).values()
    assert "no choice; choose from A" in metric.wrong("B") and not metric.wrong(" A ")
    with pytest.raises(InputError, match="an empty choice"):
        metrics.METRICS["choice_accuracy"].make(choices=("",))


OWN = """
def length(answer, reference):
    return len(answer) / len(reference)

def wordy(answer, reference):
    return "good"

def lost(answer, reference):
    return float("nan")

def failing(answer, reference):
    raise KeyError(answer)

def rouge_l(answer, reference):
    return 1
"""


def test_a_function_of_the_user_s_own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    made = metrics.made([], ["rouge_l", f"{path}:length"])
    assert list(made) == ["rouge_l", "length"]
    scores = [made["length"].each("ab", "abcd"), made["length"].each("a", "a")]
    assert made["length"].figure(scores, ["ab", "a"], ["abcd", "a"]) == 0.75
    assert math.isnan(made["length"].figure([math.nan, 1.0], ["", ""], ["", ""]))

    def said(name):
        (metric,) = metrics.made([], [f"{path}:{name}"]).values()
        with pytest.raises(InputError) as raised:
            metric.each("answer", "reference")
        return str(raised.value)

    assert "own.py:wordy: gave 'good' for the answer 'answer'; it must" in said("wordy")
    assert "own.py:lost: gave nan" in said("lost")
    assert "failed on the answer 'answer' with the reference" in said("failing")
    assert "KeyError: 'answer'; mend the function" in said("failing")


def test_what_cannot_be_had_is_told_at_once(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    (tmp_path / "broken.py").write_text("1 / 0")
    given = [
        *(f"{path}:lenght", f"{path}:rouge_l", str(path), f"{tmp_path}/broken.py:f"),
        *("nowhere.py:f", "rouge_1", "rougeL", "rouge_l"),
    ]
    with pytest.raises(InputError) as raised:
        metrics.made([], given)
    told = raised.value.problems
    assert len(told) == 7
    assert "has no function 'lenght'; did you mean 'length'?" in told[0]
    assert "found 'rouge_l' twice; keep one, or rename yours" in told[1]
    assert "write FILE.py:FUNCTION" in told[2]
    assert "cannot be run: ZeroDivisionError: division by zero; mend" in told[3]
    assert "'nowhere.py' is no file" in told[4]
    assert "found 'rouge_1'; is not known; did you mean 'rouge_l'" in told[5]
    assert "found 'rouge_l' twice" in told[6]
