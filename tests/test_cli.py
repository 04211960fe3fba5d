"""The outer shell of the commands: names, exit codes, what is written where."""

import argparse
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from jaxpeft import cli, console
from jaxpeft.errors import InputError, NumericsError, Preempted

CONFIGURED = {"data", "train", "lr_find", "sweep", "plan", "evaluate"}


@pytest.mark.parametrize(
    ("failure", "code", "lines"),
    [
        (
            InputError("seed: bad", "mesh: bad"),
            2,
            ["error: seed: bad", "error: mesh: bad"],
        ),
        (NumericsError("loss is nan"), 3, ["error: loss is nan"]),
        (Preempted("saved"), 75, ["warning: saved"]),
        (KeyboardInterrupt(), 130, ["error: interrupted"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_that_a_person_can_act_on_has_its_code(failure, code, lines, capsys):
    def main(argv):
        raise failure

    assert cli.run(main, []) == code
    captured = capsys.readouterr()
    assert captured.err.splitlines() == lines
    assert captured.out == ""


def test_another_failure_keeps_its_traceback():
    def main(argv):
        raise KeyError("a fault")

    with pytest.raises(KeyError, match="a fault"):
        cli.run(main, [])


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (75, 75)])
def test_a_command_gets_its_arguments_and_its_code_is_passed_on(returned, code):
    seen = []

    def main(argv):
        seen.append(argv)
        return returned

    assert cli.run(main, ("--config", "a.yaml")) == code
    assert seen == [["--config", "a.yaml"]]


def test_a_command_is_imported_when_it_is_run(monkeypatch):
    seen = []
    module = types.ModuleType("jaxpeft.train")
    monkeypatch.setattr(module, "main", seen.append, raising=False)
    monkeypatch.setitem(sys.modules, "jaxpeft.train", module)
    assert cli.main(["train", "--config", "a.yaml"]) == 0
    assert seen == [["--config", "a.yaml"]]


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, text in cli.COMMANDS.items():
        assert name in out
        assert text in out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_s_help_says_where_its_keys_and_examples_are(name, capsys):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    *_, last = capsys.readouterr().out.strip().split("\n\n")
    said = " ".join(last.split())
    page = cli.PAGES[name]
    assert said.startswith(f"Examples: {page}.")
    root = Path(__file__).parents[1]
    text = (root / page.split()[0]).read_text(encoding="utf-8")
    assert f"jaxpeft.{name} " in text
    assert ("--config" in said) == (name in CONFIGURED)
    assert cli.path("~/x") == str(Path.home() / "x")


def test_a_command_says_what_it_does_before_it_imports_what_takes_long():
    code = (
        "import sys, jaxpeft.train\n"
        "class Seen(Exception): pass\n"
        "def write(text): raise Seen(text)\n"
        "sys.stdout.write = write\n"
        "try: jaxpeft.train.main(['--config', 'a.yaml'])\n"
        "except Seen as line:\n"
        "    assert str(line).endswith(': training as a.yaml says\\n'), line\n"
        "    assert not {'jax', 'flax', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "else: raise AssertionError('nothing was said')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_version_is_told(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("jaxpeft ")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], "'trian' is not a command; did you mean 'train'?"),
        ([], "no command given"),
        ([""], "no command given"),
    ],
)
def test_an_unknown_command_is_an_input_error(argv, words, capsys):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.out == ""


def test_the_program_alone_says_how_it_is_used(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jaxpeft"])
    assert cli.main() == 2
    out, err = capsys.readouterr()
    assert out == "" and err.endswith(f"{cli.usage()}\n")


@pytest.mark.parametrize(
    ("code", "ends"),
    [
        ("raise SystemExit(cli.process(lambda argv: console.say('an answer')))", 141),
        ("cli.process(cli.parser('doctor', 'Looks.').parse_args)", 0),
        ("raise SystemExit(cli.main())", 141),
    ],
)
def test_a_closed_standard_output_ends_a_command_without_a_word(code, ends):
    reader, writer = os.pipe()
    os.close(reader)
    program = f"from jaxpeft import cli, console\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program, "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (ends, "")


@pytest.mark.parametrize(
    "argv",
    [
        ["--config", "a.yaml", "seed=1", "mesh.data=-1"],
        ["seed=1", "mesh.data=-1", "--config", "a.yaml"],
        ["seed=1", "--config", "a.yaml", "mesh.data=-1"],
    ],
)
def test_overrides_may_stand_anywhere(argv):
    parser = argparse.ArgumentParser()
    cli.config_arguments(parser)
    arguments = parser.parse_intermixed_args(argv)
    assert arguments.config == "a.yaml"
    assert arguments.overrides == ["seed=1", "mesh.data=-1"]


def test_the_config_argument_may_be_optional():
    parser = argparse.ArgumentParser()
    cli.config_arguments(parser, required=False)
    assert parser.parse_args([]).config is None


def test_the_console_keeps_results_and_remarks_apart(capsys):
    console.say("a result")
    console.say()
    console.warn("a remark")
    captured = capsys.readouterr()
    assert captured.out == "a result\n\n"
    assert captured.err == "warning: a remark\n"


@pytest.mark.slow
def test_help_and_configuration_load_nothing_heavy():
    heavy = ["jax", "flax", "numpy", "transformers", "matplotlib", "grain", "orbax"]
    code = (
        "import sys, jaxpeft.cli, jaxpeft.config\n"
        "assert jaxpeft.cli.main(['--help']) == 0\n"
        f"sys.exit(repr([m for m in {heavy} if m in sys.modules] or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "''"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_help_of_a_command_that_asks_a_model_loads_nothing_heavy(command):
    code = (
        "import sys, jaxpeft.cli\n"
        f"try: jaxpeft.cli.main(['{command}', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'jax', 'flax', 'numpy', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--repetition-penalty R" in done.stdout


@pytest.mark.slow
def test_the_package_runs_as_a_program():
    done = subprocess.run(
        [sys.executable, "-m", "jaxpeft", "exprot"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip().endswith("did you mean 'export'?")
