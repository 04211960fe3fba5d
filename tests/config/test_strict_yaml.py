"""YAML 1.2 scalars against Python's own numbers, and documents that must be refused."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpeft.config import strict_yaml
from jaxpeft.errors import InputError


def refusal(text: str | bytes) -> str:
    with pytest.raises(InputError) as caught:
        strict_yaml.load(text, "run.yaml")
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-.5e+3", -500.0),
        ("10", 10),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("yes", "yes"),
        ("No", "No"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("e5", "e5"),
        ("'2e-4'", "2e-4"),
        ("[a, 1e-1]", ["a", 0.1]),
        ("{a: {b: on}}", {"a": {"b": "on"}}),
    ],
)
def test_a_scalar_has_its_yaml_1_2_value(text, value):
    for found in (
        strict_yaml.load(f"key: {text}", "run.yaml")["key"],
        strict_yaml.parse_scalar(text),
    ):
        assert found == value
        assert type(found) is type(value)


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_spelling_of_a_float_is_the_float(number):
    for text in (repr(number), f"{number:e}", f"{number:.17E}", f"{number:.17g}"):
        assert strict_yaml.parse_scalar(text) == float(text)


@settings(deadline=None)
@given(st.integers())
def test_an_integer_is_the_integer(number):
    assert strict_yaml.parse_scalar(str(number)) == number


def test_infinities_and_nan_are_numbers_for_the_schema_to_refuse():
    found = strict_yaml.load("{a: .inf, b: -.INF, c: .NaN, d: nan}", "run.yaml")
    assert found["a"] == float("inf")
    assert found["b"] == -float("inf")
    assert found["c"] != found["c"]
    assert found["d"] == "nan"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["1e-4", "on", "1:30", "2024-01-01", "null", "0o7", "<<", "="]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc_", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@settings(deadline=None)
@given(st.dictionaries(st.text("abcdef_", min_size=1), VALUES, min_size=1, max_size=4))
def test_load_reads_back_what_dump_wrote(mapping):
    text = strict_yaml.dump(mapping)
    assert strict_yaml.load(text, "run.yaml") == mapping
    # Readers of YAML 1.1 must not take a word for a number either.
    assert yaml.safe_load(text) == mapping


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "is empty"),
        ("# only a comment\n", 1, "is empty"),
        ("- a\n- b\n", 1, "found a list"),
        ("word", 1, "found 'word'"),
        ("a: 1\nb: 2\na: 3\n", 3, "the key 'a' is already on line 1"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", 4, "the key 'b' is already on line 2"),
        ("a: {b: 1, b: 2}", 1, "the key 'b' is already on line 1"),
        ("a:\n\tb: 1\n", 2, "found a tab; indent with spaces"),
        ("\ta: 1\n", 1, "found a tab; indent with spaces"),
        ("a: 1\nb: \0", 2, "control character U+0000"),
        (b"a: 1\n\x80\x03", 2, "byte 0x80, which is not UTF-8"),
        ("a: 1".encode("utf-16"), 1, "not UTF-8"),
        ("a: !!python/object/apply:os.system [ls]", 1, "the tag '!!python/object"),
        ("a: 1\nb: !!python/name:os.system", 2, "the tag '!!python/name:os.system'"),
        ("a: !!set {b}", 1, "the tag '!!set'"),
        ("a: !mine 1", 1, "the tag '!mine'"),
        ("a: 1\nb: !!int 2", 2, "the tag '!!int'"),
        ("a: " + "9" * 5000, 1, "a number of 5000 digits"),
        ("1: a", 1, "found '1' as a key"),
        ("[a]: b", 1, "found a collection as a key"),
        ("a: 1\n---\nb: 2", 2, "another document"),
        ("a: *b", 1, "undefined alias 'b'"),
        ("a: &x [*x]", 1, "contains itself"),
        ("a: [1, 2\nb: 3", 2, "check indentation and brackets"),
        ("a: 'x", 1, "check indentation and brackets"),
        ("x" * 1_000_001, 1, "larger than 1,000,000 bytes"),
        ("[" * 50_000, 1, "nested deeper than 32"),
        ("{a: " * 50_000, 1, "nested deeper than 32"),
        ("- " * 50_000, 1, "nested deeper than 32"),
        ("a: [" + "1, " * 20_000 + "]", 1, "more than 10,000 values"),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, str | bytes) else value,
)
def test_a_document_is_refused_with_its_line_and_the_remedy(text, line, words):
    message = refusal(text)
    assert message.startswith(f"run.yaml:{line}: ")
    assert words in message


@pytest.mark.parametrize(
    "text", ["runs/mine #2", "#2", "a # b # c", "3 # steps", "runs/a#b"]
)
def test_a_value_by_itself_has_no_comment(text):
    assert strict_yaml.parse_scalar(text) == text


@pytest.mark.parametrize("text", ["[a #b.json, c]", "{k: v} # more", "'a' #b"])
def test_what_a_comment_would_take_from_a_value_is_told(text):
    with pytest.raises(InputError, match="comment.*in quotes"):
        strict_yaml.parse_scalar(text)


def test_a_hash_in_quotes_is_text():
    assert strict_yaml.parse_scalar("['a #b', \"# c\"]") == ["a #b", "# c"]


def test_an_alias_bomb_is_refused_before_it_is_built():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for n in range(1, 40):
        lines.append(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]")
    assert "once aliases are written out" in refusal("\n".join(lines))


def test_a_few_aliases_and_merges_work():
    text = "a: &a {k: 1, m: 2}\nb: {<<: *a, k: 3}\nc: *a\n"
    assert strict_yaml.load(text, "run.yaml") == {
        "a": {"k": 1, "m": 2},
        "b": {"k": 3, "m": 2},
        "c": {"k": 1, "m": 2},
    }


def test_a_byte_order_mark_is_no_part_of_the_first_key():
    assert strict_yaml.load(b"\xef\xbb\xbfa: 1", "run.yaml") == {"a": 1}


@pytest.mark.parametrize(
    "text", ["[1", "*x", "[qv]_proj", "!!python/name:x", "a: b: c"]
)
def test_an_override_that_is_not_yaml_is_named(text):
    with pytest.raises(InputError) as caught:
        strict_yaml.parse_scalar(text, "adapter.target_modules")
    message = str(caught.value)
    assert message.startswith(f"adapter.target_modules: found {text!r}; ")


SCALARS = ("a # b", "true", "1e-4", "", "[x]", "{a: b}", "a, b", " a ", "a\nb", "a\n")
SCALARS += (
    "~",
    "q_proj",
    "a\x85",
    "\u2028",
    "\x07",
    "it's",
    '"q"',
    "*a",
    "<<",
    "\U0001f600",
)


@pytest.mark.parametrize(
    "value",
    [
        *SCALARS,
        *(True, None, 7, 10**30, 1.0, -0.0, 1e16, 5e-324, 0.1 + 0.2, math.inf),
        [1, "true", [None, ""]],
        {"a": 1.0, "true": "[x]", "": None},
    ],
    ids=repr,
)
def test_a_value_in_one_line_is_read_back_as_it_is(value):
    line = strict_yaml.dump_scalar(value)
    found = strict_yaml.parse_scalar(line)
    assert repr(found) == repr(value)
    assert len(line.splitlines()) < 2 or line == ""


def test_a_value_in_one_line_is_short():
    values = [1e-4, 1.0, "q_proj", ["a", "b"], True, "true"]
    shown = [strict_yaml.dump_scalar(value) for value in values]
    assert shown == ["0.0001", "1.0", "q_proj", "[a, b]", "true", "'true'"]
