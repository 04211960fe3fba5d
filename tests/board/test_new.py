"""Making a run: the form says what the schema says, and what is checked is the same."""

import json
from urllib.parse import urlencode

import pytest

from jaxpeft.assembly import configuration
from jaxpeft.board import drafts, schema
from jaxpeft.board.jobs import Queue
from jaxpeft.config import strict_yaml
from jaxpeft.config.sections import SECTIONS, RunConfig
from jaxpeft.errors import InputError

from .conftest import HOST, TOKEN

OWN = {"x-board-token": TOKEN, "origin": f"http://{HOST}"}
QUICKSTART = drafts.recipe("", drafts.Path("/nowhere"))


@pytest.fixture
def text(tmp_path) -> str:
    """The quickstart, writing below the board's folder."""
    place = strict_yaml.dump_scalar(str(tmp_path / "runs" / "new"))
    return drafts.changed(QUICKSTART, "output_dir", place)


def post(board, path, **fields):
    return board.ask("POST", path, OWN, urlencode(fields).encode())


def fields_of(mapping, problems=()):
    found = schema.groups(mapping, problems)
    return {one.key: one for group in found for one in group.fields}


def test_the_form_has_every_key_of_the_schema():
    fields = fields_of(strict_yaml.load(QUICKSTART, "x"))
    for section, cls in SECTIONS.items():
        assert {f"{section}.{name}" for name in cls.model_fields} <= fields.keys()
    assert {n for n in RunConfig.model_fields if n not in SECTIONS} <= fields.keys()
    for section, table in configuration.TABLES.items():
        if section == "adapter":
            assert {f"adapter.{key}" for key in table.keys("lora")} <= fields.keys()
    assert fields["adapter.r"].value == "16" and fields["adapter.r"].default == "8"
    assert fields["model.path"].about
    assert fields["data.packing"].choices == ("true", "false")
    assert "lora" in fields["adapter.method"].choices


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "a\\0b", "\\ud800"])
def test_an_output_dir_that_no_folder_can_have_is_no_fault(board, make_run, text, name):
    given = drafts.changed(text, "output_dir", f'"{board.queue.top}/{name}"')
    run = make_run("one", config=given)
    assert board.get(f"/new?run={board.key(run.name)}").code == 200
    assert post(board, "/new/check", yaml=given).code == 200


def test_a_recipe_that_cannot_be_read_is_said(board, tmp_path):
    board.queue.work = tmp_path
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.yaml").write_bytes(b"\xff")
    (tmp_path / "configs" / "folder.yaml").mkdir()
    for name in ("mine", "folder"):
        answer = board.get(f"/new?recipe={name}")
        assert answer.code == 409 and f"{name}.yaml: cannot be read" in answer.text


def test_a_form_of_too_many_fields_is_refused(board):
    body = urlencode([("a", "")] * 2001).encode()
    assert board.ask("POST", "/new/check", OWN, body).code == 413


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "full", "nobody", 3])
def test_the_keys_follow_the_component_that_is_chosen(method):
    mapping = strict_yaml.load(QUICKSTART, "x")
    mapping["adapter"] = {"method": method}
    fields = fields_of(mapping)
    table = configuration.TABLES["adapter"]
    own = {k.removeprefix("adapter.") for k in fields if k.startswith("adapter.")}
    known = table.keys(method) if isinstance(method, str) else []
    assert set(known) == own - set(SECTIONS["adapter"].model_fields) or method == 3


def test_errors_stand_beside_their_fields_and_none_is_lost(text, tmp_path):
    for key, value in {
        "adapter.r": "x",
        "training.batch_size": "0",
        "optimizer.nonsense": "1",
        "data.train": "3",
        "nobody": "1",
    }.items():
        text = drafts.changed(text, key, value)
    wrong = drafts.problems(text, [tmp_path / "runs"], tmp_path)
    with pytest.raises(InputError) as failure:
        path = tmp_path / "x.yaml"
        path.write_text(text)
        configuration.open_config(path)
    assert wrong == list(failure.value.problems)  # of the command's own function
    mapping = strict_yaml.load(text, "x")
    groups = schema.groups(mapping, wrong)
    fields = {one.key: one for group in groups for one in group.fields}
    assert fields["adapter.r"].errors and fields["training.batch_size"].errors
    shown = [e for one in fields.values() for e in one.errors]
    shown += [e for group in groups for e in group.errors]
    shown += schema.unplaced(wrong, groups)
    assert sorted(shown) == sorted(wrong)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("adapter.r", "4"),
        ("adapter.r", ""),
        ("adapter.target_modules", "[q_proj, v_proj]"),
        ("training.num_epochs", "2"),
        ("evaluation.max_examples", "8"),
        ("seed", "7"),
        ("data.train", "{path: 'a b.json', format: alpaca}"),
        ("model.path", "'it''s: #1'"),
    ],
)
def test_a_change_of_a_key_is_that_change_alone(key, value):
    before = strict_yaml.load(QUICKSTART, "x")
    text = drafts.changed(QUICKSTART, key, value)
    section, _, name = key.rpartition(".")
    holder = before.setdefault(section, {}) if section else before
    if value:
        holder[name] = strict_yaml.parse_scalar(value)
    else:
        del holder[name]
    assert strict_yaml.load(text, "x") == before
    assert text.startswith("# Command:") == (section != "evaluation")


def test_a_change_within_flow_style_or_anchors_is_right_too():
    text = "x-a: &a {r: 4}\noutput_dir: o\nadapter: {<<: *a, method: lora}\n"
    changed = strict_yaml.load(drafts.changed(text, "adapter.r", "8"), "x")
    assert changed["adapter"] == {"r": 8, "method": "lora"}
    assert changed["x-a"] == {"r": 4}


@pytest.mark.parametrize("value", ["[1", "!!python/object:os.system x", "a: b: c"])
def test_a_value_that_is_no_yaml_changes_nothing(board, text, value):
    answer = post(board, "/new/check", yaml=text, key="adapter.r", value=value)
    told = json.loads(answer.body)
    assert (
        answer.code == 200 and told["yaml"] == text and "adapter.r" in told["verdict"]
    )


@pytest.mark.parametrize(
    "output", ["/etc/x", "../out", "runs/../../x", "~/x", "runs", "/", "a\\0b"]
)
def test_a_run_writes_below_the_folders_that_were_named(board, text, output):
    text = drafts.changed(text, "output_dir", strict_yaml.dump_scalar(output))
    answer = post(board, "/new/start", yaml=text, kind="train")
    assert answer.code == 409 and board.queue.jobs() == []
    assert "name a folder below" in answer.text


def test_a_link_leads_no_run_out_of_the_folder(board, text, tmp_path):
    (tmp_path / "runs" / "link").symlink_to(tmp_path)
    place = strict_yaml.dump_scalar(str(tmp_path / "runs" / "link" / "x"))
    text = drafts.changed(text, "output_dir", place)
    assert post(board, "/new/start", yaml=text, kind="train").code == 409


def test_starting_queues_the_very_text(board, text, tmp_path):
    answer = post(board, "/new/start", yaml=text, kind="train")
    assert answer.headers["location"] == "/jobs/1"
    (job,) = board.queue.jobs()
    assert job.argv[0] == "train" and job.run == str(tmp_path / "runs" / "new")
    assert drafts.Path(job.argv[2]).read_text() == text
    assert "/new?job=1" in board.get("/jobs/1").text
    again = board.get("/new?job=1").text
    assert "learning_rate: 1e-2" in again


def test_what_is_begun_twice_begins_once(board, text):
    post(board, "/new/start", yaml=text, kind="train")
    again = post(board, "/new/start", yaml=text, kind="train")
    assert again.headers["location"] == "/jobs/1"
    other = drafts.changed(text, "seed", "7")
    again = post(board, "/new/start", yaml=other, kind="train")
    assert again.code == 409 and "output_dir: job 1 is waiting" in again.text
    assert len(board.queue.jobs()) == 1


def test_a_run_with_other_settings_is_not_there_already(board, text, tmp_path):
    run = tmp_path / "runs" / "new"
    (run / "checkpoints" / "12").mkdir(parents=True)
    (run / "config.yaml").write_text(text)
    other = drafts.changed(text, "optimizer.learning_rate", "5e-3")
    answer = post(board, "/new/start", yaml=other, kind="train")
    assert answer.code == 409 and "there is a run already" in answer.text
    assert "optimizer.learning_rate: 0.01 then, 0.005 now" in answer.text
    # What decides nothing may change, and the rate that was found is taken from there.
    for key, value in (("training.logging_steps", "1"), ("learning_rate", "auto")):
        key = key if "." in key else f"optimizer.{key}"
        same = drafts.changed(text, key, value)
        answer = post(board, "/new/start", yaml=same, kind="train")
        assert answer.code == 303
        board.queue.stop(int(answer.headers["location"].rpartition("/")[2]))


def test_the_rate_that_was_found_is_taken_over(board, text):
    post(board, "/new/start", yaml=text, kind="lr_find")
    (job,) = board.queue.jobs()
    out = drafts.Path(job.argv[job.argv.index("--out") + 1])
    assert "learning_rate: 1e-2" in drafts.of_job(job, board.queue)
    out.mkdir()
    (out / "lr_find.json").write_text(json.dumps({"suggestion": 0.00325}))
    found = strict_yaml.load(drafts.of_job(job, board.queue), "x")
    assert found["optimizer"]["learning_rate"] == 0.00325


def test_what_a_range_test_drew_is_shown_once_it_is_done(board, text):
    post(board, "/new/start", yaml=text, kind="lr_find")
    (job,) = board.queue.jobs()
    address = f"/jobs/{job.number}/picture"
    out = drafts.Path(job.argv[job.argv.index("--out") + 1])
    out.mkdir()
    content = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    (out / "lr_find.png").write_bytes(content)
    assert board.get(address).code == 404
    (board.queue.folder / f"{job.number:06}.ended").write_text('{"code": 0}')
    assert f'src="{address}"' in board.get(f"/jobs/{job.number}").text
    answer = board.get(address)
    assert answer.code == 200 and answer.body == content
    assert answer.headers["content-type"] == "image/png"
    # Neither what is no picture nor what a link leads to is given away.
    (out / "lr_find.png").write_bytes(b"<script>")
    assert board.get(address).code == 404
    (out / "lr_find.png").unlink()
    (out / "lr_find.png").symlink_to(out.parent / "elsewhere.png")
    (out.parent / "elsewhere.png").write_bytes(content)
    assert board.get(address).code == 404
    assert address not in board.get(f"/jobs/{job.number}").text


def test_a_sweep_needs_its_axes_and_none_is_an_option(board, text):
    answer = post(board, "/new/start", yaml=text, kind="sweep", grid=" \n")
    assert answer.code == 409 and "KEY=A,B,C" in answer.text
    grid = "optimizer.learning_rate=1e-4,1e-3\r\n"
    answer = post(
        board, "/new/start", yaml=text, kind="sweep", grid=f"{grid}--out=/etc"
    )
    assert answer.code == 409 and board.queue.jobs() == []
    post(board, "/new/start", yaml=text, kind="sweep", grid=grid)
    (job,) = board.queue.jobs()
    assert "--grid=optimizer.learning_rate=1e-4,1e-3" in job.argv
    assert job.run == str(board.queue.top / "new-sweep")


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("garbage", "garbage: write section.key=value"),
        ("optimizer.learning_rat=1e-3,1e-2", "learning_rat"),
        ("optimizer.learning_rate=1e-3,abc", "abc"),
        ("seed=1,1", "names a value twice"),
        ("seed=[1", "seed"),
        (f"seed={','.join(map(str, range(1001)))}", "1,001 points"),
    ],
)
def test_a_grid_is_checked_before_it_is_queued(board, text, grid, said):
    answer = post(board, "/new/start", yaml=text, kind="sweep", grid=grid)
    assert answer.code == 409 and board.queue.jobs() == []
    beside = answer.text.partition('id="about-grid"')[2].partition("</ul>")[0]
    assert said in beside and "--grid" not in beside
    assert 'aria-describedby="about-grid"' in answer.text
    assert answer.text.count(beside) == 1  # and nowhere else
    assert '<a href="#grid">' in answer.text
    # Where the configuration is wrong, too, the lines are read all the same.
    bad = drafts.changed(text, "adapter.r", "x")
    answer = post(board, "/new/start", yaml=bad, kind="sweep", grid="garbage")
    assert "garbage: write" in answer.text and 'href="#key-adapter.r"' in answer.text


@pytest.mark.parametrize("key", ["", "adapter.r"])
def test_what_cannot_be_read_leaves_the_form_as_it_is(board, text, key):
    asked = {"key": key, "value": "4"}
    broken = json.loads(post(board, "/new/check", yaml=text + "seed: [1", **asked).body)
    assert broken["form"] is None and broken["yaml"].endswith("seed: [1")
    assert "the configuration" in broken["verdict"] and "to mend" in broken["verdict"]
    mended = json.loads(post(board, "/new/check", yaml=text, **asked).body)
    value = "4" if key else "16"
    assert f'data-key="adapter.r" value="{value}"' in mended["form"]


def test_what_is_to_mend_is_linked_and_the_folder_is_said_at_once(board, text):
    text = drafts.changed(text, "adapter.r", "x")
    text = drafts.changed(text, "output_dir", "/elsewhere/run")
    told = json.loads(post(board, "/new/check", yaml=text).body)
    assert told["problems"] == 2 and "2 to mend" in told["verdict"]
    for key in ("adapter.r", "output_dir"):
        assert f'<a href="#key-{key}">' in told["verdict"]
        assert f'id="key-{key}"' in told["form"]
    assert "name a folder below" in told["form"]


def test_a_plan_takes_the_memory_of_a_device(board, text):
    post(board, "/new/start", yaml=text, kind="plan", memory="24")
    assert board.queue.jobs()[0].argv[-2:] == ("--device-memory", "24")
    answer = post(board, "/new/start", yaml=text, kind="plan", memory="--help")
    assert answer.code == 409 and len(board.queue.jobs()) == 1


@pytest.mark.parametrize("kind", ["chat", "", "report", "../x"])
def test_only_four_commands_begin_here(board, text, kind):
    assert post(board, "/new/start", yaml=text, kind=kind).code == 409
    assert board.queue.jobs() == []


def test_an_output_dir_is_fresh(tmp_path, text):
    top = tmp_path / "runs"
    assert drafts.fresh(text, top, tmp_path) == text
    (top / "new").mkdir(parents=True)
    for name in ("new-2", "new-3"):
        text = drafts.fresh(text, top, tmp_path)
        assert strict_yaml.load(text, "x")["output_dir"] == str(top / name)
        (top / name).mkdir()


@pytest.mark.parametrize("yaml", ["", "[1", "- 1", "a: 1\na: 2", "{}", "x" * 10_000])
def test_the_form_stands_whatever_the_text_is(board, yaml):
    told = json.loads(post(board, "/new/check", yaml=yaml).body)
    assert told["problems"] and told["yaml"] == yaml
    assert post(board, "/new/start", yaml=yaml, kind="train").code == 409


def test_a_configuration_is_text_in_the_page(board, text):
    hostile = text + "x-own: </textarea><script>alert(1)</script>\n"
    answer = post(board, "/new/start", yaml=hostile, kind="nobody")
    assert "<script>alert" not in answer.text and "&lt;script&gt;alert" in answer.text


def test_a_new_run_begins_with_an_earlier_one(board, make_run, text):
    make_run("one", config=text)
    page = board.get(f"/new?run={board.key('one')}")
    assert page.code == 200 and "This configuration is sound." in page.text
    for path in ("/new?run=x", "/new?job=7", "/new?job=x&recipe=../../etc/passwd"):
        assert board.get(path).code in (200, 404)
    assert "root:" not in board.get("/new?recipe=../../../etc/passwd").text


def test_a_file_of_llama_factory_is_translated(board):
    theirs = """
model_name_or_path: jaxpeft:tiny-llama
stage: sft
finetuning_type: lora
lora_rank: 4
dataset: alpaca_en_demo
template: llama3
output_dir: saves/x
num_train_epochs: 3
deepspeed: ds.json
"""
    answer = post(board, "/new/convert", theirs=theirs)
    assert answer.code == 200 and "r: 4" in answer.text and "deepspeed" in answer.text
    assert post(board, "/new/convert", theirs="stage: ppo").code == 409


def test_a_queue_that_cannot_be_written_is_said(tmp_path, text):
    (tmp_path / "runs").mkdir()
    queue = Queue(tmp_path / "runs")
    queue.folder.parent.mkdir(parents=True)
    queue.folder.write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        drafts.begin("plan", text, [], queue, [tmp_path / "runs"])
