"""Patterns, and files that are elsewhere: in fsspec's memory, in place of a bucket."""

import gzip

import fsspec
import pytest

from jaxpeft.data import sources
from jaxpeft.data.sources import Source, remote
from jaxpeft.errors import InputError


@pytest.fixture
def bucket():
    """Puts a file into a bucket, which is emptied."""
    system = fsspec.filesystem("memory")
    system.store.clear()

    def put(name, content):
        with system.open(name, "wb") as file:
            file.write(content)

    return put


def values(path, **kw):
    return [row.value for row in sources.read(path, **kw)]


def test_a_pattern_is_its_files_by_name(write, tmp_path):
    write("some/2.jsonl", '{"a": 2}')
    write("some/1.jsonl.gz", gzip.compress(b'{"a": 1}'))
    write("some/more/3.json", [{"a": 3}])
    write("some/notes.md", "")
    write("some/.hidden.json", "")
    assert values(f"{tmp_path}/some/*") == [{"a": 1}, {"a": 2}]
    assert values(f"{tmp_path}/some/**/*.json") == [{"a": 3}]
    assert values(write("some/[1].json", [{"a": 4}])) == [{"a": 4}]
    with pytest.raises(InputError, match=r"no \.json, .* file, of 1 that are there"):
        sources.read(f"{tmp_path}/some/*.md")
    write("some/1.jsonl", "")
    with pytest.raises(InputError, match=r"\*\.json.*: holds 1\.jsonl and, packed"):
        sources.read(f"{tmp_path}/some/*.json*")


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.parquet", "d.csv"])
def test_a_file_in_a_bucket_reads_as_one_here(bucket, write, name, tmp_path):
    import pyarrow
    import pyarrow.parquet as parquet

    records = [{"a": f"é{number}"} for number in range(3)]
    lines = "".join(f'{{"a": "{record["a"]}"}}\n' for record in records).encode()
    if name == "d.parquet":
        table = pyarrow.Table.from_pylist(records)
        parquet.write_table(table, tmp_path / name, row_group_size=2)
        content = (tmp_path / name).read_bytes()
    else:
        csv = "\n".join(["a", *(record["a"] for record in records)]).encode()
        contents = {"d.jsonl": lines, "d.jsonl.gz": gzip.compress(lines), "d.csv": csv}
        content = contents[name]
    bucket(f"/b/some/{name}", content)
    address = f"memory://b/some/{name}"
    rows = sources.read(address)
    assert [row.value for row in rows] == records
    assert rows[2].place.startswith("memory://") and rows[2].place.endswith("(row 3)")
    assert values(f"file://{write(name, content)}", max_rows=2) == records[:2]


def test_folders_and_patterns_in_a_bucket(bucket):
    bucket("/b/some/2.jsonl", b'{"a": 2}')
    bucket("/b/some/1.jsonl", b'{"a": 1}')
    bucket("/b/some/notes.md", b"")
    for address in ("memory://b/some", "memory://b/some/", "memory://b/*/*.jsonl"):
        assert values(address) == [{"a": 1}, {"a": 2}]
    before = sources.identity("memory://b/some")
    assert before == sources.identity("memory://b/some")
    bucket("/b/some/2.jsonl", b'{"a": 3}')
    assert before != sources.identity("memory://b/some")


def test_what_cannot_be_read_elsewhere(bucket, monkeypatch):
    with pytest.raises(InputError, match=r"memory://b/d\.jsonl: there is no such file"):
        sources.read("memory://b/d.jsonl")
    with pytest.raises(InputError, match=r"leads to no .* file, of 0 that are there"):
        sources.read("memory://b/*.jsonl")
    with pytest.raises(InputError, match=r"ftp:// cannot be read; .*s3, gs"):
        sources.read("ftp://b/d.jsonl")
    with pytest.raises(InputError, match=r"zip::s3:// cannot be read"):
        sources.read("zip::s3://b/d.jsonl")
    with pytest.raises(InputError, match="split 'test' goes with a data set"):
        sources.read(Source("memory://b/d.jsonl", split="test"))
    bucket("/b/d.jsonl", b'{"a": 1}\n{"a"')
    with pytest.raises(InputError, match=r"memory://.*b/d\.jsonl:2: not valid JSON"):
        sources.read("memory://b/d.jsonl")

    def fail(*_, **__):
        raise RuntimeError("the key has expired")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "exists", fail)
    with pytest.raises(InputError, match=r"cannot be reached \(the key has expired\)"):
        sources.read("memory://b/d.jsonl")


@pytest.mark.parametrize("scheme", ["s3", "gs", "https"])
def test_the_package_that_is_missing_is_named(scheme, monkeypatch):
    def fail(*_):
        raise ImportError(f"Install something for {scheme}")

    monkeypatch.setattr(fsspec, "url_to_fs", fail)
    package = remote.PACKAGES[scheme].replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(InputError, match=f"Install something.*install '{package}'"):
        sources.read(f"{scheme}://b/d.jsonl")


def test_an_address_of_the_web_may_have_a_query():
    assert remote.without_query("https://x.org/d.json.gz?download=1").endswith(".gz")
