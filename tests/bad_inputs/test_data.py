"""Data and chat templates of no use: exit code 2, help, and nothing written.

Each row is a run that cannot be, and the words that `train` must answer with: the key
or the file, the value found, the remedy.
"""

import json

import pytest

RECORD = {"instruction": "Say", "input": "hello", "output": "hello"}

ROWS = []


def bad(number, *words):
    """Adds the function below to the table: its number in the list of promises, and
    what the answer says."""

    def add(spoil):
        ROWS.append(pytest.param(spoil, words, id=f"{number}-{spoil.__name__}"))
        return spoil

    return add


@bad(31, "chat template", "{here}/model", "format: text")
def no_chat_template(place):
    (place.model() / "chat_template.jinja").unlink()


@bad(31, "{here}/data.jsonl:2 (row 2)", "turn 2 is 'user' after 'user'", "alternate")
def roles_that_do_not_alternate(place):
    user, model = ({"role": r, "content": "x"} for r in ("user", "assistant"))
    rows = [{"messages": [user, model]}, {"messages": [user, user, model]}]
    text = "\n".join(map(json.dumps, rows))
    place.data(text, "data.jsonl", format="messages")


@bad(32, "{here}/model", "chat template", "unsafe")
def template_that_escapes(place):
    place.template(
        "{{ messages.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}"
    )


@bad(33, "{here}/model", "did not finish within", "chat_template.jinja")
def template_that_never_ends(place):
    place.template(
        "{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
    )


@bad(33, "{here}/model", "MiB", "chat_template.jinja")
def template_that_eats_memory(place):
    place.template("{{ ('x' * 999999) * 99999 }}")


@bad(34, "{here}/data.jsonl:2", "not valid JSON", "correct or delete that line")
def broken_json_line(place):
    place.data(f'{json.dumps(RECORD)}\n{{"instruction": \n', "data.jsonl")


@bad(34, "{here}/data.jsonl:2", "byte 0xff is not valid UTF-8", "encoding UTF-8")
def broken_utf8(place):
    place.data(
        json.dumps(RECORD).encode() + b'\n{"instruction": "\xff"}\n', "data.jsonl"
    )


@bad(34, "{here}/data.jsonl:2", r"\ud83d", "surrogate")
def lone_surrogate(place):
    second = json.dumps({**RECORD, "output": "\ud83d"})
    place.data(f"{json.dumps(RECORD)}\n{second}\n", "data.jsonl")


@bad(35, "{here}/data.json (row 2)", "'output' has to be text; it is int '7'")
def mixed_types(place):
    place.data([RECORD, {**RECORD, "output": 7}])


@bad(35, "{here}/data.json (row 2)", "column 'output' is missing", "outputs", "fields")
def missing_column(place):
    place.data([RECORD, {"instruction": "Say", "outputs": "hello"}])


@bad(36, "{here}/data.json", "holds no records")
def empty_data(place):
    place.data([])


@bad(36, "data.train", "none of the 4 examples has a token left", "max_length")
def nothing_left_to_learn(place):
    place.set("data.max_length", 4)


@bad(37, "leads out of", "{here}/secret.jsonl")
def data_that_links_out(place):
    (place.folder / "secret.jsonl").write_text(json.dumps(RECORD))
    (place.folder / "all").mkdir()
    (place.folder / "all" / "a.jsonl").symlink_to(place.folder / "secret.jsonl")
    place.set("data.train", {"path": str(place.folder / "all")})


@pytest.mark.parametrize(("spoil", "words"), ROWS)
def test_a_bad_input_is_explained_and_leaves_nothing(spoil, words, refused):
    refused(spoil, words)
