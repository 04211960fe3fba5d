"""Replacing files: the old content or the new one, whatever happens in between."""

import os
from pathlib import Path

import pytest

from jaxpeft import replacing
from jaxpeft.errors import InputError


def contents(folder):
    return {p.name: p.read_text() for p in folder.iterdir()}


@pytest.fixture
def calls(monkeypatch):
    """What reaches the disk and when: ("flush" or "rename", name) in order."""
    found = []
    flush, replace = replacing.flush, os.replace

    def flushed(path):
        found.append(("flush", path.name))
        flush(path)

    def replaced(source, target):
        found.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(replacing, "flush", flushed)
    monkeypatch.setattr(os, "replace", replaced)
    return found


def test_a_reader_finds_the_old_content_until_all_is_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing.replacing(path) as partial:
        partial.write_text("half of the")
        assert path.read_text() == "old"
    assert contents(tmp_path) == {"a.json": "half of the"}


def test_what_a_killed_process_left_is_written_over(tmp_path):
    (tmp_path / "a.txt.partial").write_text("much that somebody began")
    replacing.write_text(tmp_path / "a.txt", "é")
    assert (tmp_path / "a.txt").read_bytes() == "é".encode()
    assert list(contents(tmp_path)) == ["a.txt"]


def test_a_link_is_never_written_through(tmp_path):
    """Whoever made a folder may have put one where a file will be written."""
    mine, folder = tmp_path / "mine", tmp_path / "folder"
    mine.write_text("mine")
    folder.mkdir()
    for name in ("a", "a.partial"):
        (folder / name).symlink_to(mine)
    replacing.write_text(folder / "a", "new")
    (folder / "b.partial").symlink_to(mine)
    with replacing.replacing(folder / "b") as partial:
        partial.write_text("new")
    assert mine.read_text() == "mine"
    assert contents(folder) == {"a": "new", "b": "new"}
    assert not any(path.is_symlink() for path in folder.iterdir())


def test_a_folder_that_a_killed_process_began_is_removed(tmp_path):
    begun = tmp_path / "out" / ".partial-abc"
    begun.mkdir(parents=True)
    (begun / "model.safetensors").write_text("half")
    kept = tmp_path / "out" / ".partial-notes"  # a file of somebody's own
    kept.write_text("mine")
    assert replacing.is_leftover(begun) and not replacing.is_leftover(kept)
    with replacing.files_of(tmp_path / "out") as partial:
        (partial / "a").write_text("new")
    assert contents(tmp_path / "out") == {"a": "new", ".partial-notes": "mine"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_changes_nothing(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing.replacing(path) as partial:
        partial.write_text("new")
        raise error
    assert contents(tmp_path) == {"a.txt": "old"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_on_a_full_disk_the_old_content_stands(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with (
        pytest.raises(OSError, match="No space left"),
        replacing.replacing(path) as partial,
    ):
        partial.write_text("ne")
        Path("/dev/full").write_text("w")
    assert contents(tmp_path) == {"a.txt": "old"}
    with (
        pytest.raises(InputError, match=r"cannot be written \(No space left"),
        replacing.files_of(tmp_path / "folder") as partial,
    ):
        Path("/dev/full").write_text((partial / "b").name)
    assert contents(tmp_path) == {"a.txt": "old"}


def test_a_durable_file_is_on_the_disk_before_its_name(tmp_path, calls):
    with replacing.replacing(tmp_path / "a", durable=True) as partial:
        partial.write_text("new")
    folder = tmp_path.name
    assert calls == [("flush", "a.partial"), ("rename", "a"), ("flush", folder)]
    calls.clear()
    replacing.rename(tmp_path / "a", tmp_path / "b")
    assert calls == [("rename", "b"), ("flush", folder)]


def test_the_files_of_a_folder_take_their_places_weights_first(tmp_path, calls):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    (folder / "other").write_text("stays")
    with replacing.files_of(folder) as partial:
        (partial / "config.json").write_text("new")
        (partial / "w.bin").write_text("weights")
    names = ["w.bin", "config.json"]
    expected = [(what, name) for what in ("flush", "rename") for name in names]
    assert calls == [*expected, ("flush", "folder")]
    assert contents(folder) == {
        "config.json": "new",
        "other": "stays",
        "w.bin": "weights",
    }


def test_a_folder_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError), replacing.files_of(tmp_path / "new") as partial:
        (partial / "a").write_text("half")
        raise ValueError
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(InputError, match="file: cannot be written"),
        replacing.files_of(tmp_path / "file"),
    ):
        pass
    assert contents(tmp_path) == {"file": "in the way"}
