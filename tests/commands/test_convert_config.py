"""The command around the translation: what it writes where, and how it ends."""

from pathlib import Path

import pytest
import yaml

from jaxpeft.assembly import configuration

THEIRS = {
    "model_name_or_path": "org/model",
    "dataset": "mine",
    "output_dir": "runs/theirs",
    "use_badam": True,
    "use_unsloth": True,
}


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """The path of a file of LLaMA-Factory's, in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(THEIRS))
    return "theirs.yaml"


def test_without_a_file_the_yaml_goes_to_standard_output(command, theirs, tmp_path):
    done = command("convert_config", theirs)
    assert done.code == 0
    (tmp_path / "ours.yaml").write_text(done.out)
    assert configuration.open_config(tmp_path / "ours.yaml").output_dir == "runs/theirs"
    # What has no equivalent is told apart from it.
    assert "warning: use_badam: " in done.err
    assert "warning: use_unsloth: left out: how the step" in done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours.yaml", "theirs.yaml"]


def test_with_a_file_the_report_goes_there(command, theirs, tmp_path):
    done = command("convert_config", theirs, "--out", "ours.yaml")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1].startswith(
        "wrote ours.yaml, and verified its keys"
    )
    first = (tmp_path / "ours.yaml").read_text().splitlines()[:2]
    assert first[0] == "# Command:  python -m jaxpeft.train --config ours.yaml"
    assert first[1] == "# Translated from LLaMA-Factory's theirs.yaml."
    assert max(map(len, (tmp_path / "ours.yaml").read_text().splitlines())) <= 88


def test_what_somebody_has_changed_is_not_overwritten(command, theirs, tmp_path):
    ours, out = tmp_path / "ours.yaml", ("--out", "ours.yaml")
    assert command("convert_config", theirs, *out).code == 0
    first = ours.read_text()
    assert command("convert_config", theirs, *out).code == 0  # it is the same
    ours.write_text(first + "# mine\n")
    done = command("convert_config", theirs, *out)
    assert done.code == 2 and "give --overwrite" in done.err
    assert ours.read_text() == first + "# mine\n"
    assert command("convert_config", theirs, *out, "--overwrite").code == 0
    assert ours.read_text() == first


def test_a_translation_that_no_run_accepts_leaves_the_file_alone(
    command, theirs, tmp_path
):
    keys = THEIRS | {"warmup_ratio": 2.0, "seed": -1}
    (tmp_path / theirs).write_text(yaml.safe_dump(keys))
    (tmp_path / "ours.yaml").write_text("before")
    done = command("convert_config", theirs, "--out", "ours.yaml")
    assert done.code == 2
    assert "schedule.warmup_ratio: found 2.0" in done.err
    assert "seed: found -1" in done.err
    assert (tmp_path / "ours.yaml").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give one file"),
        (["a.yaml", "--from-training-arguments", "b.json"], "give one file"),
        (["nowhere.yaml"], "nowhere.yaml: cannot be read"),
        (["theirs.yaml", "--peft", "a.json"], "--peft: goes with --from-training"),
        (["theirs.yaml", "--devices", "0"], "--devices: found 0"),
        (["theirs.yaml", "--out", "no/where.yaml"], "--out: 'no' is not a folder"),
        (["theirs.yaml", "--out", "."], "--out: '.' is a folder"),
        (["theirs.yaml", "--out", "./theirs.yaml"], "is what is translated"),
    ],
    ids=str,
)
def test_arguments_without_sense_are_refused(arguments, words, command, theirs):
    done = command("convert_config", *arguments)
    assert (done.code, done.out) == (2, "")
    assert f"error: {words}" in done.err or f" {words}" in done.err
    assert yaml.safe_load(Path(theirs).read_text()) == THEIRS
