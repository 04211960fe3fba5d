"""What a text that names a file means: the home folder, and what ships."""

from pathlib import Path

import pytest

from jaxpeft import config, hf
from jaxpeft.assembly import configuration
from jaxpeft.config import paths
from jaxpeft.data import sources
from jaxpeft.errors import InputError

ROOT = Path(__file__).parents[2]
EVERY_PATH = """
output_dir: ~/runs/x
model: {path: ~/models/x}
adapter: {init_from: ~/runs/y/adapter}
data: {train: {path: ~/train.json}, eval: [{path: ~/a.json}, {path: b~.json}]}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def test_every_path_of_a_configuration_may_begin_at_home(home, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(EVERY_PATH)
    cfg = configuration.open_config(file)
    assert cfg.output_dir == f"{home}/runs/x"
    assert cfg.model.path == f"{home}/models/x"
    assert cfg.adapter.init_from == f"{home}/runs/y/adapter"
    assert cfg.data.eval is not None
    found = [source.path for source in (*cfg.data.train, *cfg.data.eval)]
    assert found == [f"{home}/train.json", f"{home}/a.json", "b~.json"]
    # Given on the command line, the same; and it is what a written one says.
    cfg = configuration.open_config(file, ["output_dir=~/other", "model.path='~'"])
    assert (cfg.output_dir, cfg.model.path) == (f"{home}/other", str(home))
    file.write_text(config.to_yaml(cfg))
    assert configuration.open_config(file) == cfg
    # A model's folder is found so by every command.
    assert hf.resolve("~") == home


def test_nobody_s_home_is_named(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(EVERY_PATH)
    with pytest.raises(InputError) as caught:
        configuration.open_config(file, ["output_dir=~nobody-here/x"])
    assert caught.value.problems == (
        "output_dir: found '~nobody-here/x'; ~nobody-here is nobody's home folder: "
        "write ./~nobody-here/x for what is called so",
    )


def test_the_shipped_run_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = configuration.open_config("jaxpeft:quickstart.yaml")
    assert cfg == configuration.open_config(ROOT / "configs" / "quickstart.yaml")
    assert (hf.resolve(cfg.model.path) / "config.json").is_file()
    assert cfg.data.eval is not None
    counts = [len(sources.read(s.path)) for s in (*cfg.data.train, *cfg.data.eval)]
    assert counts == [1500, 150]
    assert len(sources.read("jaxpeft:weather")) == 1650


def test_both_copies_of_the_first_configuration_are_one():
    """A package from an index has no configs/, and the README names that folder."""
    copies = ("configs/quickstart.yaml", "jaxpeft/assets/quickstart.yaml")
    one, other = ((ROOT / name).read_bytes() for name in copies)
    assert one == other


@pytest.mark.parametrize("name", ["tiny-lama", "../errors.py", "", "/etc/hosts", "."])
def test_what_does_not_ship_is_named_and_what_does(name):
    with pytest.raises(
        InputError,
        match="comes with jaxpeft; did you mean .jaxpeft:|choose from jaxpeft:",
    ):
        paths.find(f"jaxpeft:{name}")


def test_a_missing_file_s_message_says_what_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"; jaxpeft:quickstart.yaml comes with"):
        configuration.open_config("configs/quickstart.yaml")
    with pytest.raises(InputError, match=r"; jaxpeft:tiny-llama comes with"):
        hf.resolve("jaxpeft/assets/tiny-llama")
    assert paths.remedy("my.yaml") == ""
