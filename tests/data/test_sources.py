"""Files are read exactly or refused with file and line."""

import sys

import pytest

from jaxpeft.data import sources
from jaxpeft.errors import InputError


def values(path, **kw):
    return [row.value for row in sources.read(path, **kw)]


RECORDS = [{"a": "1", "b": "zwei ✓"}, {"a": "", "b": "x,\ny"}]


def test_json_list(write):
    path = write("d.json", RECORDS)
    assert values(path) == RECORDS
    assert sources.read(path)[1].place == f"{path} (row 2)"


def test_jsonl_counts_lines_and_rows(write):
    path = write("d.jsonl", '{"a": 1}\n\n{"a": "\u2028"}\r\n')
    rows = sources.read(path)
    assert [r.value for r in rows] == [{"a": 1}, {"a": "\u2028"}]
    assert rows[1].place == f"{path}:3 (row 2)"


def test_json_named_file_of_lines(write):
    assert values(write("d.json", '{"a": 1}\n{"a": 2}\n')) == [{"a": 1}, {"a": 2}]


def test_csv_with_quotes_newlines_bom(write):
    path = write("d.csv", '\ufeffa,b\r\n1,zwei ✓\r\n"","x,\ny"\r\n')
    assert values(path) == RECORDS


def test_json_of_one_object_or_of_objects_over_several_lines(write):
    one = '{\n  "a": "1",\n  "b": {"c": 2}\n}\n'
    assert values(write("one.json", one)) == [{"a": "1", "b": {"c": 2}}]
    assert values(write("flat.json", '{"a": "1"}')) == [{"a": "1"}]
    rows = sources.read(write("some.json", one + "\n" + one))
    assert [row.value for row in rows] == [{"a": "1", "b": {"c": 2}}] * 2
    assert rows[1].place.endswith("some.json:6 (row 2)")


def test_json_whose_records_are_the_list_under_data(write):
    rows = sources.read(write("d.json", {"version": 1, "data": RECORDS}))
    assert [row.value for row in rows] == RECORDS
    assert rows[1].place.endswith("d.json (data, row 2)")
    for whole in ({"data": "text"}, {"data": []}, {"messages": [{"role": "user"}]}):
        assert values(write("d.json", whole)) == [whole]


def test_csv_of_pandas_has_an_index(write):
    assert values(write("d.csv", ",a\n0,x\n1,y\n")) == [
        {"Unnamed: 0": "0", "a": "x"},
        {"Unnamed: 0": "1", "a": "y"},
    ]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_csv_with_another_separator(write, mark):
    text = f'a{mark}b\r\n1{mark}"x, {mark}y"\r\n'
    assert values(write("d.csv", text)) == [{"a": "1", "b": f"x, {mark}y"}]
    assert values(write("d.csv", f'a,"b{mark}c"\n1,2')) == [
        {"a": "1", f"b{mark}c": "2"}
    ]


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ('"Frage, bitte";Antwort\nHo;Hi\n', {"Frage, bitte": "Ho", "Antwort": "Hi"}),
        ('"a, b, c";"d\n,e"\n1;2\n', {"a, b, c": "1", "d\n,e": "2"}),
        ('"a ""x"", y";b\n1;2,3,4\n', {'a "x", y': "1", "b": "2,3,4"}),
        ("a;b,c;d\n1;2;3\n", {"a": "1", "b,c": "2", "d": "3"}),
        ("\ufeffsep=;\r\na,b;c\r\n1;2\r\n", {"a,b": "1", "c": "2"}),
        ('"sep=|"\na|b\n1;|2\n', {"a": "1;", "b": "2"}),
        ("SEP=\t\na\tb,c\n1\t2\n", {"a": "1", "b,c": "2"}),
        ("sep=;;\na;b\n1;2\n", {"a": "1", "b": "2"}),
        ("sep=x\n1\n", {"sep=x": "1"}),
    ],
)
def test_csv_separators_count_outside_quotes_or_are_named(write, text, record):
    assert values(write("d.csv", text)) == [record]


def test_csv_takes_long_fields(write):
    assert values(write("d.csv", "a\n" + "x" * 200_000))[0]["a"] == "x" * 200_000


def test_txt_is_one_document_a_line_or_blocks_between_blank_lines(write):
    assert values(write("a.txt", "one\ntwo\n")) == ["one", "two"]
    assert values(write("b.txt", "one\nmore\n\n \ntwo\n")) == ["one\nmore", "two"]


def test_directory_reads_known_files_by_name(write, tmp_path):
    write("some/2.json", [{"a": 2}])
    write("some/1.jsonl", '{"a": 1}')
    write("some/readme.md", "no data")
    write("some/._1.jsonl", b"\0\5\x16\7\0\2Mac OS X")
    assert values(str(tmp_path / "some")) == [{"a": 1}, {"a": 2}]


def test_max_rows(write):
    assert values(write("d.json", RECORDS), max_rows=1) == RECORDS[:1]


def test_parquet_round_trip(tmp_path):
    import pyarrow
    import pyarrow.parquet as parquet

    path = tmp_path / "d.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
    assert values(str(path)) == RECORDS
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="not a valid parquet file"):
        sources.read(str(path))


def test_parquet_without_pyarrow_names_the_extra(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'jaxpeft\[datasets\]'"):
        sources.read(write("d.parquet", b"PAR1"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.jsonl", '{"a": 1}\n{"a": \n', r"d\.jsonl:2: not valid JSON"),
        ("d.json", '[{"a": 1},\n {"a" 2}]', r"d\.json:2: not valid JSON"),
        ("d.json", '{\n "a": 1', r"d\.json:2: not valid JSON"),
        ("d.json", '{\n "a": 1}\n{\n"a" 2}', r"d\.json:4: not valid JSON"),
        ("d.json", '[{"a": 1}]\n[]', r"d\.json:2: .*after the first value .*'\[\]'"),
        ("d.jsonl", '{\n "a": 1}', r"d\.jsonl:1: .* one line .* name the file \.json"),
        ("d.jsonl", '[\n{"a": 1}]', r"d\.jsonl:1: .* one line .* name the file \.json"),
        ("d.jsonl", '[{"a": 1}, {"a": 2}]', r"d\.jsonl:1: .* 2 records; .* \.json"),
        (
            "d.json",
            '[{"a": {}},\n {"a": 1, "b": 2, "a": 3}]',
            r"d\.json:2 \(row 2\): the key 'a' stands twice in one object; keep one",
        ),
        ("d.jsonl", '{"a": 1}\n{"b": {"a": 1, "a": 1}}', r"d\.jsonl:2: the key 'a' s"),
        ("d.json", '{\n"a": 1,\n"a": 2}', r"d\.json:1: the key 'a' stands twice"),
        ("d.json", "3", r"holds int, expected a list"),
        ("d.json", "[1]", r"d\.json \(row 1\): a record has to be an object"),
        ("d.jsonl", "[1]", r"d\.jsonl:1 \(row 1\): a record has to be an object"),
        ("d.jsonl", "[" * 100_000, r"d\.jsonl:1: this JSON is nested too deeply"),
        ("d.json", b'[{"a":\n"\xff"}]', r"d\.json:2: byte 0xff is not valid UTF-8"),
        ("d.txt", b"fine\nfine\n\xe4\n", r"d\.txt:3: byte 0xe4"),
        ("d.jsonl", '{"a": "x"}\n{"a": "\\ud83d"}', r"d\.jsonl:2: \\ud83d is half"),
        ("d.json", '[\n"\\uDE00\\ud83d"]', r"d\.json:2: \\uDE00 is half"),
        ("d.json", '["\\ud83d\\u0041"]', r"d\.json:1: \\ud83d is half"),
        ("d.json", "[]", r"d\.json: holds no records"),
        ("d.jsonl", "\n\n", "holds no records"),
        ("d.csv", "a,b\n", "holds no records"),
        ("d.csv", "", "holds no records"),
        ("d.txt", " \n", "holds no records"),
        ("d.csv", "a,b\n1,2\n1\n", r"d\.csv:3 \(row 2\): 1 fields"),
        ("d.csv", "a,a\n1,2\n", r"d\.csv:1: the header line needs distinct"),
        ("d.csv", "a,b,\n1,2,3\n", "distinct, .* give each column a name of its own"),
        ("d.csv", "a;b\n1;2;3\n", r"3 fields.* quote fields that hold ';'"),
        ("d.csv", "a, b;c\n1;2\n", r"1 fields.* 2 columns, both split at ','.* sep=;"),
        ("d.csv", "sep=;\na;b\n1\n", r"d\.csv:3 \(row 1\).*split at ';'.* sep=,"),
        ("d.csv", "sep=;\na;a\n1;2\n", r"d\.csv:2: the header line .*split at ';'"),
        ("d.csv", "sep=;\n", "holds no records"),
        ("d.csv", 'a\n"open\n', r"d\.csv:2: not valid CSV"),
        ("d.xlsx", "a", r"cannot read '\.xlsx'; convert it to one of \.json"),
    ],
)
def test_refused(write, name, content, message):
    with pytest.raises(InputError, match=message):
        sources.read(write(name, content))


def test_all_lines_that_cannot_be_read_are_counted(write):
    path = write("d.jsonl", '{"a": 1}\n{"a" 2}\n[]\n' + '{"a" 3}\n' * 7)
    with pytest.raises(InputError) as caught:
        sources.read(path)
    assert [problem.split(":")[1][0] for problem in caught.value.problems[:5]] == [
        *"23456"
    ]
    assert caught.value.problems[5:] == (
        f"{path}: 9 of 10 rows cannot be used; the first of them are named above; "
        "correct them, or leave them out with data.on_error: skip",
    )


def test_whole_surrogate_pairs_and_escaped_backslashes_are_text(write):
    path = write("d.json", r'[{"a": "\ud83d\ude00 \\ud83d"}]')
    assert values(path) == [{"a": "😀 \\ud83d"}]


def test_missing_file_suggests_its_neighbour(write, tmp_path):
    write("train.json", RECORDS)
    with pytest.raises(InputError, match=r"did you mean 'train\.json'"):
        sources.read(str(tmp_path / "trian.json"))


def test_missing_file_says_where_it_was_looked_for(write, tmp_path, monkeypatch):
    for name in ("train.json", "notes.txt", "stories/a.json"):
        write(name, RECORDS)
    monkeypatch.chdir(tmp_path / "stories")
    with pytest.raises(InputError) as caught:
        sources.read("../questions.jsonl")
    assert str(caught.value) == (
        f"../questions.jsonl: there is no such data file; looked in the folder "
        f"{tmp_path} (relative paths are relative to the current directory)"
    )
    with pytest.raises(InputError) as caught:
        sources.read(f"{tmp_path}/storys")
    assert str(caught.value) == (
        f"{tmp_path}/storys: there is no such data file; looked in the folder "
        f"{tmp_path}; did you mean 'stories'?"
    )
    with pytest.raises(InputError, match=r"; did you mean 'train\.json'\?"):
        sources.read(f"{tmp_path}/train.parquet")
    with pytest.raises(InputError) as caught:
        sources.read("weather/train.json")
    assert f"{tmp_path}/stories/weather, which is missing (rel" in str(caught.value)
    assert "jaxpeft:weather/train.json comes with jaxpeft" in str(caught.value)


def test_directory_does_not_follow_links_out_of_it(write, tmp_path):
    outside = write("secret.json", RECORDS)
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "d.json").symlink_to(outside)
    with pytest.raises(InputError, match="leads out of"):
        sources.read(str(tmp_path / "some"))
