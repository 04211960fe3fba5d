"""Talking with a model: its process, its settings, and when it is let go."""

import asyncio
import contextlib
import sys
from pathlib import Path
from urllib.parse import urlencode

import anyio
import pytest

from jaxpeft.board import talk, talks
from jaxpeft.board.talks import Talks
from jaxpeft.errors import InputError

from .conftest import HOST, TOKEN

OWN = {"x-board-token": TOKEN, "origin": f"http://{HOST}"}

# Stands for a model: it says each letter of the text, slowly where the run says so.
MODEL = """
import json, sys, time
first = json.loads(sys.stdin.readline())
def tell(number, **content):
    print(json.dumps({"number": number, **content}), flush=True)
if "missing" in first["run"]:
    tell(0, error="it is gone")
    sys.exit()
pause = 0.02 if "slow" in first["run"] else 0
time.sleep(10 * pause)
tell(0, ready=True)
for line in sys.stdin:
    request = json.loads(line)
    if "stop" in request:
        continue
    if request.get("text") == "die":
        sys.exit(1)
    for letter in request.get("text", ""):
        tell(request["number"], piece=letter)
        time.sleep(pause)
    tell(request["number"], end=True)
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Talks whose processes are that stand-in."""
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    real = asyncio.create_subprocess_exec

    def begin(*command, **settings):
        assert settings["start_new_session"]
        assert command[1:] == ("-P", "-m", "jaxpeft.board", "--talk")
        return real(sys.executable, str(path), **settings)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", begin)
    return Talks(tmp_path, tmp_path)


async def asked(found, run, text="ab", most=100):
    parts = []
    async with contextlib.aclosing(
        found.ask(Path(run), False, {"text": text})
    ) as all_of:
        async for part in all_of:
            parts.append(part)
            if len(parts) == most:
                break
    return parts


async def all_closed(found):
    for one in found._talks.values():
        await one.close()
    if found._letting_go is not None:
        found._letting_go.cancel()


def test_an_answer_comes_in_pieces_and_the_model_stays(model):
    async def course():
        first = await asked(model, "/run")
        second = await asked(model, "/run")
        await all_closed(model)
        return first, second

    first, second = asyncio.run(course())
    pieces = [{"piece": "a"}, {"piece": "b"}, {"end": True}]
    assert first == [{"status": "loading the model"}, *pieces] and second == pieces


def test_what_is_left_of_an_answer_does_not_begin_the_next(model):
    async def course():
        await asked(model, "/run", "x" * 500, most=3)
        second = await asked(model, "/run", "ab")
        await all_closed(model)
        return second

    assert asyncio.run(course()) == [{"piece": "a"}, {"piece": "b"}, {"end": True}]


@pytest.mark.parametrize("begun", [False, True], ids=["loading", "answering"])
def test_who_is_cancelled_leaves_nothing_for_the_next(model, begun):
    """As the server cancels: each waiting ends at once, until the task has ended."""

    async def course():
        if begun:
            await asked(model, "/slow", "a")
        with anyio.move_on_after(0.1):
            await asked(model, "/slow", "x" * 20)
            pytest.fail("it was not cancelled")
        found = [await asked(model, "/slow", text) for text in ("ab", "c")]
        await all_closed(model)
        return [[part.get("piece") for part in parts] for parts in found]

    first, second = asyncio.run(course())
    assert first == [None] * (not begun) + ["a", "b", None] and second == ["c", None]


def test_who_waits_for_their_turn_may_leave(model):
    async def course():
        with anyio.move_on_after(0.1):
            async with asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(asked(model, "/slow", "x" * 20))
        (one,) = model._talks.values()
        assert one.asking == 0
        found = await asked(model, "/slow", "a")
        await all_closed(model)
        return found

    assert asyncio.run(course())[-2:] == [{"piece": "a"}, {"end": True}]


def test_several_who_ask_at_once_load_no_more_than_two(model):
    async def course():
        found = await asyncio.gather(*(asked(model, f"/{n}/slow") for n in range(4)))
        held = len(model._talks)
        await all_closed(model)
        return held, found

    held, found = asyncio.run(course())
    assert held == 2 and [parts[-1] for parts in found[:2]] == [{"end": True}] * 2
    assert all("2 models answer already" in parts[0]["error"] for parts in found[2:])


def test_a_model_that_cannot_be_loaded_or_ends_is_said_and_begun_again(model):
    async def course():
        gone = await asked(model, "/missing")
        died = await asked(model, "/run", "die")
        again = await asked(model, "/run", "a")
        await all_closed(model)
        return gone, died, again

    gone, died, again = asyncio.run(course())
    assert gone[-1] == {"error": "it is gone"}
    assert "talk.log" in died[-1]["error"]
    assert again[-1] == {"end": True}


def test_no_more_than_two_models_are_held_and_idle_ones_are_let_go(model, monkeypatch):
    async def course():
        for run in ("/a", "/b", "/c"):
            await asked(model, run)
        held = {str(folder) for folder, _ in model._talks}
        processes = [one._process for one in model._talks.values()]
        monkeypatch.setattr(talks, "IDLE", 0.1)
        model._letting_go.cancel()
        await model._let_go()
        return held, [process.returncode for process in processes]

    held, codes = asyncio.run(course())
    assert held == {"/b", "/c"} and codes == [0, 0] and not model._talks


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", "x"), ("temperature", "-1"), ("top_p", "0"), ("top_k", "1.5")]
    + [("max_new_tokens", "0"), ("max_new_tokens", "99999"), ("seed", "nan")]
    + [("temperature", "inf"), ("repetition_penalty", "0")],
)
def test_settings_without_sense_are_said(field, value):
    with pytest.raises(InputError, match=field.replace("_", "[-_]")):
        talk._settings({field: value})


def test_settings_have_the_defaults_and_kinds_of_generation():
    found = talk._settings({"temperature": "0.7", "top_k": "5", "system": " "})
    assert found["system"] is None and found["max_new_tokens"] == 256
    assert (found["sampling"].temperature, found["sampling"].top_k) == (0.7, 5)


def test_a_conversation_is_what_the_page_says_and_nothing_else():
    given = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, 3]
    told = talk._messages({"messages": given}, "s")
    assert told == [{"role": "system", "content": "s"}, given[0]]
    assert talk._messages({"messages": "x"}, None) == []


def test_only_runs_with_a_result_can_be_tried(make_run, board):
    run = make_run("one")
    key = board.key("one")
    assert board.get(f"/try?run={key}").code == 404
    (run / "adapter").mkdir()
    assert board.get(f"/try?run={key}").code == 200
    assert board.get(f"/try?run={key}&with=base").text.count("side-talk") == 2
    assert board.get(f"/try?run={key}&with=../x").code == 404
    body = urlencode({"run": "../x", "text": "a"}).encode()
    assert board.ask("POST", "/try/say", OWN, body).code == 404
    body = urlencode({"run": key, "messages": "["}).encode()
    assert board.ask("POST", "/try/say", OWN, body).code == 400
    assert (
        board.ask("POST", "/try/say", {"x-board-token": TOKEN, "origin": "null"}).code
        == 403
    )


@pytest.mark.parametrize("quantization", ["int8", "none"])
def test_the_base_is_loaded_as_the_run_s_configuration_says(tmp_path, quantization):
    """An adapter of a quantized base is asked beside that base."""
    import jax
    import jax.numpy as jnp

    from jaxpeft.quant.by_column import ByColumn

    tmp_path.joinpath("config.yaml").write_text(
        "output_dir: x\nmodel: {path: 'jaxpeft:tiny-llama', dtype: bfloat16, "
        f"quantization: {quantization}}}\ndata: {{train: {{path: x.json}}}}\n"
    )
    found = talk._load({"run": str(tmp_path), "base": True}).params
    kernels = jax.tree.leaves(found, is_leaf=lambda one: isinstance(one, ByColumn))
    count = sum(isinstance(one, ByColumn) for one in kernels)
    assert (count > 0) == (quantization == "int8")
    kinds = {leaf.dtype for leaf in jax.tree.leaves(found)}
    assert jnp.dtype(jnp.bfloat16) in kinds


@pytest.mark.slow
def test_settings_are_checked_before_anything_is_loaded(tmp_path):
    async def course():
        found = Talks(tmp_path, tmp_path)
        request = {"text": "Write.", "temperature": "x"}
        parts = [part async for part in found.ask(tmp_path / "none", False, request)]
        await all_closed(found)
        return parts

    *_, told = asyncio.run(course())
    assert told == {"error": "temperature: found 'x'; give a number"}


@pytest.mark.slow
def test_the_model_s_process_answers_as_the_chat_does(tmp_path, asset_model):
    """And it ends with its standard input."""
    from jaxpeft.assembly import trained
    from jaxpeft.generate.dialogue import Dialogue
    from jaxpeft.models.sampling import Sampling

    run = tmp_path / "run"
    run.mkdir()
    run.joinpath("config.yaml").write_text(
        "output_dir: x\nmodel: {path: 'jaxpeft:tiny-llama', dtype: float32}\n"
        "data: {train: {path: x.json}}\n"
    )

    async def course():
        found = Talks(tmp_path, tmp_path)
        request = {"text": "Write.", "max_new_tokens": "8"}
        parts = [part async for part in found.ask(run, True, request)]
        (one,) = found._talks.values()
        process = one._process
        assert process is not None, parts
        await all_closed(found)
        return parts, process.returncode

    parts, code = asyncio.run(course())
    model = trained.load(None, str(asset_model), None, "float32")
    dialogue = Dialogue(model, system=None, max_new_tokens=8, sampling=Sampling())
    said = "".join(part.get("piece", "") for part in parts)
    assert said == "".join(dialogue.say("Write.")) and code == 0
