"""Stored examples: the same as fresh ones, and never wrong whatever happens to them."""

import dataclasses
import errno
import json
from pathlib import Path

import numpy as np
import pytest

from jaxpeft import cache
from jaxpeft.config.data import DataSection
from jaxpeft.data import blocks, load_eval, load_train, store, stored_source, workers
from jaxpeft.data.blocks import BLOCK, Blocks, Joined, Ones, Writing
from jaxpeft.data.formats import SFT
from jaxpeft.data.making import Recipe
from jaxpeft.errors import InputError

RECORDS = [
    {"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n % 23)))}
    for n in range(120)
]


@pytest.fixture
def load(write, tokenizer, monkeypatch, tmp_path):
    """Loads records from a file, through a store in a folder of its own."""
    monkeypatch.setattr(stored_source, "SMALL", 0)
    path = write("d.jsonl", "\n".join(map(json.dumps, RECORDS)))

    def made(**settings):
        given = {"cache_dir": str(tmp_path / "kept"), "max_length": 48, **settings}
        section = DataSection.model_validate({"train": {"path": path}, **given})
        return load_train(section, tokenizer, batch_size=8, seed=1)

    made.path, made.root = Path(path), tmp_path / "kept"
    return made


def folder(load):
    (one,) = (path for path in load.root.iterdir() if path.is_dir())
    return one


def content(batches, steps=20):
    return [{n: x.tolist() for n, x in batches[k].items()} for k in range(steps)]


def test_stored_examples_are_those_that_were_made(load, monkeypatch):
    fresh = load(cache_dir=None)  # the tests keep nothing in the user's folder
    first = load()
    monkeypatch.setattr(workers, "Maker", None)  # nothing is made a second time
    second = load()
    assert content(fresh) == content(first) == content(second)
    assert fresh.fingerprint == first.fingerprint == second.fingerprint
    assert fresh.summary() == second.summary()


def test_what_decides_the_examples_decides_the_store(load, tokenizer):
    load()
    (before,) = {folder(load)}
    for change in ({"max_length": 32}, {"train_on": "all"}, {"on_error": "skip"}):
        load(**change)
    assert sum(path.is_dir() for path in load.root.iterdir()) == 4
    load(shuffle=False, length_buckets=1, num_workers=1)  # these do not
    assert sum(path.is_dir() for path in load.root.iterdir()) == 4
    load.path.write_text(load.path.read_text().replace("Count", "Sum"))
    load()
    assert sum(path.is_dir() for path in load.root.iterdir()) == 5
    assert before.exists()


def test_both_sides_of_a_split_come_from_one_store(load, tokenizer):
    train = load(eval_split=0.2)
    source = {"path": str(load.path)}
    section = {"train": source, "eval_split": 0.2, "max_length": 48}
    held = load_eval(
        DataSection.model_validate({**section, "cache_dir": str(load.root)}),
        tokenizer,
        batch_size=4,
    )
    assert held is not None and folder(load)
    assert (len(train.examples), len(held.examples)) == (96, 24)

    def questions(examples):
        numbers = range(len(examples))
        return {tokenizer.decode(sum(examples.question(n), [])) for n in numbers}

    both = questions(train.examples) | questions(held.examples)
    assert len(both) == len(questions(load().examples)) == 120


DAMAGES = {
    "truncated": ("tokens.bin", lambda data: data[:-4]),
    "empty": ("meta.json", lambda data: b""),
    "a flipped byte of the list": (
        "meta.json",
        lambda data: data.replace(b"e", b"d", 1),
    ),
    "another length": ("lengths.bin", lambda data: b"\x01" + data[1:]),
    "a file that is gone": ("supervised.bin", None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_made_anew(load, capsys, damage):
    right = content(load())
    name, change = DAMAGES[damage]
    file = folder(load) / name
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    assert content(load()) == right
    assert "stored examples are made anew: " in capsys.readouterr().err
    assert content(load()) == right
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["tokens.bin", "supervised.bin"])
def test_a_flipped_byte_never_becomes_a_batch(load, name):
    right = content(load())
    file = folder(load) / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4 if name == "tokens.bin" else 1
    file.write_bytes(data)
    with pytest.raises(InputError, match=f"damaged .{name}, block 0.* repeat the comm"):
        content(load())
    assert content(load()) == right


def test_a_folder_that_cannot_be_written_is_no_hindrance(load, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    expected = content(load(cache_dir=None))
    got = load(cache_dir=str(tmp_path / "file" / "below"))
    assert content(got) == expected
    told = capsys.readouterr().err
    assert "examples are not stored in" in told and "set data.cache_dir" in told


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_full_disk_is_no_hindrance(load, capsys, monkeypatch, everywhere):
    expected = content(load(cache_dir=None))
    append = Writing.append

    def full(self, values):
        here = self._path is not None and load.root in self._path.parents
        if here or (everywhere and self._path is not None):
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, values)

    monkeypatch.setattr(blocks.Writing, "append", full)
    assert content(load()) == expected
    assert "No space left on device; they are made anew" in capsys.readouterr().err
    assert not [path for path in load.root.iterdir() if path.is_dir()]


def test_what_is_wrong_with_the_data_is_said_and_nothing_stored(load):
    lines = load.path.read_text().splitlines()
    lines[7], lines[90] = "{}", '{"instruction": 1}'
    load.path.write_text("\n".join(lines))
    with pytest.raises(InputError) as caught:
        load()
    places = [line.split(": ")[0] for line in caught.value.problems[:2]]
    assert [place.rpartition(":")[2] for place in places] == [
        "8 (row 8)",
        "91 (row 91)",
    ]
    assert "2 of 120 rows cannot be used" in caught.value.problems[-1]
    assert not [path for path in load.root.iterdir() if path.is_dir()]
    kept = [load(on_error="skip").summary().sources[0] for _ in range(2)]
    assert kept[0] == kept[1] and kept[0].examples == 118
    assert [row.place for row in kept[0].skipped] == places


def test_stores_that_nobody_opens_go(load, monkeypatch):
    load()
    old = folder(load)
    monkeypatch.setattr(store, "UNUSED", -1)
    load(max_length=32)
    assert not old.exists()


@pytest.mark.slow
def test_workers_make_the_same(load, monkeypatch):
    monkeypatch.setattr(workers, "FEW", 50)
    alone = load(num_workers=1, cache_dir=None)
    several = load(num_workers=3)
    assert content(alone) == content(several)
    assert alone.fingerprint == several.fingerprint
    lines = load.path.read_text().splitlines()
    lines[7] = "{}"
    load.path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"row 8\): column 'instruction' is missing"):
        load(num_workers=2)


def test_an_array_is_seen_to_be_whole_a_block_at_a_time(tmp_path):
    values = np.arange(BLOCK, dtype=np.int32)  # four blocks
    told = []
    for pieces in (1, 7):
        path = tmp_path / str(pieces)
        writing = Writing("i4", path)
        for piece in np.array_split(values, pieces):
            writing.append(piece)
        known = writing.finish()
        told.append(known)
        damaged = []
        read = Blocks(path, known, damaged.append)
        np.testing.assert_array_equal(read[5:9], values[5:9])
        assert list(read._seen) == [True, False, False, False]
        edge = BLOCK // 4
        np.testing.assert_array_equal(read[edge - 1 : edge + 1], [edge - 1, edge])
        assert list(read._seen) == [True, True, False, False]
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        assert not damaged and len(read[-2:]) == 2
        assert damaged == [f"{pieces}, block 3"]
    assert told[0] == told[1]  # however it was written
    assert len(told[0]["blocks"]) == 4


def test_arrays_end_to_end():
    parts = [np.arange(3), np.arange(0), np.arange(3, 10)]
    joined = Joined(parts)
    for a in range(11):
        for b in range(a, 11):
            np.testing.assert_array_equal(joined[a:b], np.arange(10)[a:b])
    assert joined[4:6].base is parts[2] and len(joined) == 10
    np.testing.assert_array_equal(np.asarray(joined), np.arange(10))
    assert Ones(10**12)[5:7].tolist() == [1, 1]


def test_the_command_lists_and_clears(load, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXPEFT_CACHE_DIR", str(tmp_path))
    load(cache_dir=None)
    (tmp_path / "programs" / "cpu").mkdir(parents=True)
    (tmp_path / "programs" / "cpu" / "one").write_bytes(bytes(2500))
    assert cache.main([]) == 0
    first, total, programs = capsys.readouterr().out.splitlines()
    assert "120 examples" in first and first.endswith(str(load.path))
    assert f"in all: tokenized examples in {tmp_path / 'examples'}" in total
    assert programs.startswith("   2.5 kB  compiled programs")
    assert cache.main(["--clear"]) == 0
    assert "kB deleted in" in capsys.readouterr().out
    assert not list((tmp_path / "examples").glob("*/"))
    assert cache.main(["--clear", "all"]) == 0
    assert not (tmp_path / "programs").exists()
    monkeypatch.setenv("JAXPEFT_CACHE_DIR", "off")
    with pytest.raises(InputError, match="nothing is kept; give --dir"):
        cache.main([])


def test_whatever_a_kind_says_tells_stores_apart():
    said = {"together": 2, "cuts": "prompt", "ends_documents": False, "weighs": False}
    said |= {"name": "other", "columns": {"margin": "float32"}, "train_on": "all"}
    kinds = [SFT, *(dataclasses.replace(SFT, **{n: x}) for n, x in said.items())]
    recipes = [Recipe("alpaca", None, kind, 64, "assistant", False) for kind in kinds]
    recipes += [dataclasses.replace(recipes[0], fields={"input": None})]
    assert len({store.key_of(recipe.identity()) for recipe in recipes}) == len(recipes)
