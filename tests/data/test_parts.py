"""Sources are read a part at a time; the rows do not depend on how it is cut."""

import gzip
import json
import random
import re
import sys
import tracemalloc
from copy import deepcopy

import pytest
import zstandard

from jaxpeft.data import formats, sources
from jaxpeft.data.rejects import Rejects
from jaxpeft.data.sources import json_file, jsonl, part
from jaxpeft.errors import InputError


@pytest.fixture
def size(monkeypatch):
    """Sets how large a part is."""

    def set_to(characters):
        for module in (part, jsonl, json_file):
            monkeypatch.setattr(module, "SIZE", characters)

    return set_to


def read(path, max_rows=None):
    """The rows of each part as another process reads them, and what is rejected."""
    rejects, rows = Rejects(path), []
    for one in sources.parts(path, max_rows):
        own = deepcopy(one).rows(rejects)
        assert len(own) <= one.count and 0 <= one.done <= 1
        rows.append(own)
    return rows, rejects


RECORDS = [
    {"a": f"{n} ✓ 😀 {'é' * (n % 7)}", "b": [n, -1.5e3, {"c": None}]} for n in range(40)
]
LINES = "\n".join(json.dumps(r) + "\r\n" * (n % 3 == 0) for n, r in enumerate(RECORDS))
FILES = {
    "lines.jsonl": "\ufeff\n\u00a0\n" + LINES + "\n{bad}\n[1]\n" + LINES,
    "lines.json": LINES,
    "list.json": json.dumps(RECORDS + [3, "\ud83d"], indent=1),
    "flat.json": json.dumps(RECORDS, ensure_ascii=False),
    "objects.json": "\n\n".join(json.dumps(r, indent=2) for r in RECORDS),
    "held.json": json.dumps({"data": RECORDS}),
    "one.json": json.dumps(RECORDS[0], indent=1),
    "d.csv": 'sep=;\r\na;b\r\n"1\r\n""x"";";2\r\n3\r\n\r\n' + "é;5\r\n" * 30,
    "blocks.txt": "\ufeff\n\none\r\ntwo\n \t\n\n" + "three\nfour\n\n" * 9 + "\n",
    "rows.txt": "\none\r\ntwo\n" * 1 + "three é\n" * 9 + "\n\n",
}


@pytest.mark.parametrize("name", FILES)
def test_the_rows_and_places_do_not_depend_on_the_size_of_a_part(write, size, name):
    path = write(name, FILES[name])
    (whole,), rejected = read(path)
    places = [row.place for row in whole]
    assert len(set(places)) == len(places)
    for characters in (1, 7, 100):
        size(characters)
        parts, again = read(path)
        assert [row for rows in parts for row in rows] == whole
        assert (again.count, again.problems) == (rejected.count, rejected.problems)
        assert len(parts) > 1 or characters == 100 or name == "one.json"
    for suffix, pack in ((".gz", gzip.compress), (".zst", zstandard.compress)):
        packed = write(name + suffix, pack(FILES[name].encode()))
        rows = [row for rows in read(packed)[0] for row in rows]
        assert rows == [
            row._replace(place=row.place.replace(name, name + suffix)) for row in whole
        ]


def test_lines_have_their_numbers_in_every_part(write, size):
    size(50)
    rows, rejects = read(write("d.jsonl", FILES["lines.jsonl"]))
    text = FILES["lines.jsonl"].split("\n")
    for number, row in enumerate([row for own in rows for row in own], 1):
        line = int(row.place.split(":")[1].split()[0])
        assert row.value == json.loads(text[line - 1])
        assert row.place.endswith(f"(row {number + 2 * (number > len(RECORDS))})")
    assert [p.split(":")[1].split()[0] for p in rejects.problems] == [
        str(text.index("{bad}") + 1),
        str(text.index("[1]") + 1),
    ]


def test_what_is_wrong_is_found_where_json_finds_it(write, size):
    """However the text is cut; json itself reads the whole and says line and column."""
    text = json.dumps([{"a": [1, 2.5, True], "é": "x\\\n\u2028"}] * 3, indent=1)
    draw = random.Random(0)
    for at in draw.sample(range(1, len(text)), 60):
        broken = text[:at] + draw.choice('"}x,\n') + text[at + draw.randint(0, 3) :]
        try:
            json.loads(broken)
        except json.JSONDecodeError as error:
            if "Extra data" in error.msg:
                continue
            expected = f"d.json:{error.lineno}: not valid JSON ("
            column = f"column {error.colno})"
        else:
            continue
        for characters in (1, 16, 1000):
            size(characters)
            with pytest.raises(InputError) as caught:
                sources.read(write("d.json", broken))
            message = str(caught.value)
            if "after the first value" in message or "twice" in message:
                continue
            assert expected in message and column in message, (broken, message)


def test_parquet_is_read_by_row_groups(tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet as parquet

    path = str(tmp_path / "d.parquet")
    pictures = [{"bytes": b"\x89PNG", "path": None}] * len(RECORDS)
    texts = [record["a"] for record in RECORDS]
    table = pyarrow.table({"a": texts, "image": pictures})
    parquet.write_table(table, path, row_group_size=15)
    parts, _ = read(path)
    assert [len(rows) for rows in parts] == [15, 15, 10]
    rows = [row for own in parts for row in own]
    assert [row.value for row in rows] == [{"a": text} for text in texts]
    assert rows[20].place == f"{path} (row 21)"
    assert [len(rows) for rows in read(path, 20)[0]] == [15, 5]

    data = bytearray((tmp_path / "d.parquet").read_bytes())
    group = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    begin = group.dictionary_page_offset
    data[begin : begin + group.total_compressed_size] = bytes(
        group.total_compressed_size
    )
    (tmp_path / "d.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"d\.parquet, row group 2: not a valid"):
        read(path)


def test_a_column_that_a_row_group_or_a_file_lacks(tmp_path):
    """In a parquet file such a column is null; of a folder one file may lack it."""
    import pyarrow
    import pyarrow.parquet as parquet

    rows = [{"text": None if n // 10 == 6 else f"{n}"} for n in range(90)]
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "d.parquet", row_group_size=10)
    (tmp_path / "some").mkdir()
    for number in range(9):
        name = "texts" if number == 6 else "text"
        table = pyarrow.table({name: ["x"] * 10})
        parquet.write_table(table, tmp_path / "some" / f"{number + 1}.parquet")
    lacks = {
        "d.parquet": ("d.parquet (row 61)", "column 'text' is null in this row"),
        "some": ("some/7.parquet (row 1)", "column 'text' is missing.* 'texts'"),
    }
    for name, (place, words) in lacks.items():
        with pytest.raises(InputError) as caught:
            formats.parse(sources.read(str(tmp_path / name)), "text")
        first, *_, last = caught.value.problems
        assert first.startswith(f"{tmp_path}/{place}: ") and re.search(words, first)
        assert "10 of 90 rows cannot be used" in last


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.txt"])
def test_no_more_is_read_than_is_asked_for(write, size, name):
    """What comes after the first rows is no text at all."""
    size(8)
    begin = {"d.json": b"[" + b'{"a": 1},\n' * 2000, "d.csv": b"a\n" + b"1\n" * 99999}
    text = begin.get(name, b'{"a": 1}\n' * 99)
    path = write(name, text + bytes(range(256)) * 200)
    with pytest.raises(InputError):
        sources.read(path)
    assert len(sources.read(path, max_rows=5)) == 5


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.json.zst", "d.csv.gz", "d.txt.zst"])
def test_packed_bytes_that_break_off_or_are_damaged(write, name):
    text = "a\n" + "".join(f'"{random.Random(n).random()}"\n' for n in range(9000))
    pack = gzip.compress if name.endswith(".gz") else zstandard.compress
    data = pack(text.encode())
    place = rf"{name}:\d+: its packed bytes "
    for cut in (len(data) - 1, len(data) // 2):
        with pytest.raises(InputError, match=place + "break off here; fetch the file"):
            read(write(name, data[:cut]))
    middle = len(data) // 2
    damaged = data[:middle] + bytes(50) + data[middle + 50 :]
    with pytest.raises(
        InputError, match=rf"{name}:\d+: (its packed bytes|not valid CSV)"
    ):
        read(write(name, damaged))
    with pytest.raises(InputError, match=place + "are damaged from here on"):
        read(write(name, b"no packed bytes"))


def test_frames_one_after_another_are_one_file(write):
    text = FILES["lines.json"].encode()
    frames = zstandard.compress(text[:99]) + zstandard.compress(text[99:])
    rows, _ = read(write("d.jsonl.zst", frames))
    assert [row.value for own in rows for row in own] == RECORDS


def test_zstandard_that_is_missing_is_named(write, monkeypatch):
    path = write("d.jsonl.zst", zstandard.compress(b'{"a": 1}'))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(InputError, match=r"zstandard; pip install 'jaxpeft\[datasets"):
        sources.read(path)


def test_a_folder_that_holds_a_file_twice(write, tmp_path):
    write("some/1.jsonl", '{"a": 1}')
    write("some/2.jsonl.gz", gzip.compress(b'{"a": 2}'))
    rows = sources.read(str(tmp_path / "some"))
    assert [row.value for row in rows] == [{"a": 1}, {"a": 2}]
    write("some/1.jsonl.gz", b"")
    with pytest.raises(InputError, match=r"1\.jsonl and, packed, 1\.jsonl\.gz"):
        sources.found(sources.Source(str(tmp_path / "some")))
    with pytest.raises(InputError, match=r"cannot read '\.gz'"):
        sources.read(write("d.parquet.gz", b""))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.txt", "d.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, size, name):
    import pyarrow
    import pyarrow.parquet as parquet

    size(1 << 14)
    path, text = tmp_path / name, "é" * 500
    if name == "d.parquet":
        table = pyarrow.table({"a": [text + str(n) for n in range(6000)]})
        parquet.write_table(table, path, row_group_size=500)
    else:
        record = json.dumps({"a": text}, ensure_ascii=False)
        begin, end = ("[", "{}]") if name == "d.json" else ("", "")
        mark = ",\n" if name == "d.json" else "\n"
        path.write_text(begin + (record + mark) * 6000 + end)
    tracemalloc.start()
    count = sum(len(one.rows(Rejects(""))) for one in sources.parts(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count >= 5999 and peak < 2 << 20 < 6 << 20
