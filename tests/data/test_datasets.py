"""Data sets of the hub, from its cache: nothing here asks the network."""

import sys

import pytest

from jaxpeft.config import DataSection
from jaxpeft.data import sources
from jaxpeft.data.sources import Source
from jaxpeft.errors import InputError

COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache that is empty; gives a function that puts a data set into it."""
    import datasets.config
    import huggingface_hub
    import pyarrow
    import pyarrow.parquet as parquet

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "h"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "unpacked")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)

    def put(files, commit=COMMIT, readme=""):
        repository = tmp_path / "h" / "datasets--org--name"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        for name, values in files.items():
            path = repository / "snapshots" / commit / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures = [{"bytes": b"x", "path": None} for _ in values]
            table = pyarrow.table({"a": values, "image": pictures})
            parquet.write_table(table, path)
        if readme:
            (path.parents[1] / "README.md").write_text(readme)
        return repository / "snapshots" / commit

    return put


def values(*source, **kw):
    rows = [row.value for row in sources.read(Source("org/name", *source), **kw)]
    return [value["a"] for value in rows if isinstance(value, dict)]


TRAIN, TEST = "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
TEXTS = [str(number) for number in range(100)]


def test_a_data_set_of_the_hub_is_read_from_its_cache(hub):
    hub({TRAIN: TEXTS, TEST: ["t"]})
    assert values() == TEXTS
    assert values(None, "test") == ["t"]
    assert values(None, "train[:5%]") == TEXTS[:5]
    assert values(None, "train[10:20]") == TEXTS[10:20]
    assert values(None, "train[-2:]+test") == [*TEXTS[-2:], "t"]
    assert values(max_rows=7) == TEXTS[:7]
    row = sources.read(Source("org/name", None, "train[10:20]"))[3]
    assert row.place == "org/name, split train[10:20] (row 4)"
    assert row.value == {"a": "13"}  # no picture


def test_what_a_data_set_does_not_have(hub):
    hub({TRAIN: TEXTS, TEST: ["t"]})
    with pytest.raises(InputError, match=r"split 'valid' is none .*has train, test"):
        values(None, "valid")
    with pytest.raises(InputError, match=r"split 'train\[:5' is none .*train, test"):
        values(None, "train[:5")
    with pytest.raises(InputError, match=r"'more' not found.*set name to one of them"):
        values("more")
    with pytest.raises(InputError) as caught:
        sources.read("org/other")
    (problem,) = caught.value.problems
    assert problem.startswith("org/other: is no file or folder here (looked in ")
    assert problem.endswith("with `hf download --repo-type dataset org/other`")


def test_configurations_and_revisions(hub):
    readme = "---\nconfigs:\n"
    for name in ("en", "de"):
        readme += f"- config_name: {name}\n  data_files: data/{name}.parquet\n"
    hub({"data/en.parquet": ["yes"], "data/de.parquet": ["ja"]}, OLDER, readme + "---")
    assert (values("en"), values("de")) == (["yes"], ["ja"])
    with pytest.raises(InputError, match=r"\['en', 'de'\]"):
        values()
    hub({TRAIN: TEXTS})
    assert values() == TEXTS
    assert values("de", None, OLDER) == ["ja"]
    with pytest.raises(InputError, match=r"org/name: .* with `hf download"):
        values(None, None, "c" * 40)


def test_the_identity_is_that_of_the_commit_and_the_rows(hub):
    hub({TRAIN: TEXTS, TEST: ["t"]})
    known = [
        sources.identity(Source("org/name", split=split, revision=revision))
        for split in ("train", "test", "train[:5%]")
        for revision in (None, OLDER)
    ]
    assert len(set(known)) == 6
    assert sources.identity("org/name") == known[0]
    assert sources.identity(Source("org/name", revision=COMMIT)) == known[0]


def test_a_folder_laid_out_like_a_data_set(hub):
    folder = str(hub({TRAIN: TEXTS, TEST: ["t"]}))
    assert [row.value for row in sources.read(Source(folder, split="test"))] == [
        {"a": "t"}
    ]
    assert len(sources.read(folder)) == 100
    assert len(sources.identity(folder)) == 32
    with pytest.raises(InputError, match=r"revision 'v1' goes with a data set of the"):
        sources.found(Source(folder, revision="v1"))


def test_a_folder_of_a_data_set_is_read_alone(hub):
    snapshot = hub({"en/train.parquet": ["yes"], "de/train.parquet": ["ja"]})
    for path in ("org/name", str(snapshot)):
        for folder, word in (("en", "yes"), ("de", "ja")):
            source = Source(path, data_dir=folder)
            assert [row.value for row in sources.read(source)] == [{"a": word}]
    both = [sources.identity(Source("org/name", data_dir=x)) for x in ("en", "de")]
    assert len({*both, sources.identity("org/name")}) == 3
    with pytest.raises(InputError, match=r"org/name: is no data set"):
        sources.read(Source("org/name", data_dir="fr"))


def test_files_of_a_folder_that_do_not_go_together(hub, caplog):
    first, second = (f"train-0000{n}-of-00002.parquet" for n in (0, 1))
    folder = hub({f"data/{first}": TEXTS})
    import pyarrow
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.table({"b": [1]}), folder / "data" / second)
    with pytest.raises(InputError, match=r"cannot be unpacked .*; check the network"):
        sources.read(Source(str(folder), split="train"))
    assert not caplog.records  # the library logs what it raises


def test_a_folder_that_save_to_disk_wrote(write, tmp_path):
    write("some/state.json", {})
    with pytest.raises(InputError, match="save_to_disk .* to_parquet"):
        sources.found(Source(str(tmp_path / "some")))


@pytest.mark.parametrize("key", ["name", "split", "revision", "data_dir"])
def test_keys_of_data_sets_do_not_go_with_files(write, key):
    path = write("d.json", [{"a": 1}])
    with pytest.raises(InputError, match=rf"d\.json: {key} 'x' goes with a data set"):
        sources.found(Source(path, **{key: "x"}))
    (section,) = DataSection.model_validate({"train": {"path": path, key: "x"}}).train
    assert sources.source_of(section) == Source(path, **{key: "x"})


def test_the_library_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'jaxpeft\[datasets\]'"):
        sources.read("org/name")


def test_files_have_the_identity_of_their_bytes(write, tmp_path):
    one = sources.identity(write("a.jsonl", '{"a": 1}\n'))
    assert one == sources.identity(write("b/c.jsonl", '{"a": 1}\n'))
    others = [
        sources.identity(write("a.jsonl", '{"a": 2}\n')),
        sources.identity(write("a.json", '{"a": 1}\n')),
    ]
    write("b/d.jsonl", '{"a": 1}\n')
    others.append(sources.identity(str(tmp_path / "b")))
    assert len({one, *others}) == 4
