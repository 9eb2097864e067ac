"""The reader of tables: cells as text, formats that differ in quotes, and errors with file and line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from medtrain.data import BIDS_MISSING, CSV_MISSING, infer_types, missing_words, parse_numbers, read_cells, read_table
from medtrain.errors import DataError


def put(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("trailing", ["", "s", "ss"])
def test_encodings_line_ends_and_trailing_separators(tmp_path: Path, encoding: str, end: str, trailing: str) -> None:
    for name, separator in (("t.tsv", "\t"), ("c.csv", ","), ("e.csv", ";"), ("d.txt", "\t")):
        text = end.join(["id s größe ", "007 s  AD ", "", "s", "1\u2028 s\x0cx" + trailing, " NAs"]).replace(
            "s", separator
        )
        table = read_table(put(tmp_path / name, text, encoding))
        assert table.to_dict("list") == {"id": ["007", "1", "NA"], "größe": ["AD", "x", ""]}
        assert table.index.tolist() == [2, 5, 6]


def test_tsv_has_no_quotes_and_csv_closes_them(tmp_path: Path) -> None:
    text = 'id\tsaid\na\t"left handed\nb\t5" tall\nc\t"none\n'
    assert read_table(put(tmp_path / "t.tsv", text))["said"].tolist() == ['"left handed', '5" tall', '"none']
    text = 'id,said\na,"x, ""y"""\nb,"two\nlines"\nc,5" tall\n'
    table = read_table(put(tmp_path / "t.csv", text))
    assert table["said"].tolist() == ['x, "y"', "two\nlines", '5" tall'] and table.index.tolist() == [2, 3, 5]
    for bad in ('id,said\na,x\nb,"left handed\nc,"none\n', 'id,said\na,x\nb,"unclosed\nc,ok\n'):
        with pytest.raises(DataError, match=r"t\.csv:3: a cell begins with a quote that is not closed"):
            read_table(put(tmp_path / "t.csv", bad))
    # R quotes the whole header, and then every text.
    table = read_table(put(tmp_path / "r.tsv", '"id"\t"said"\n"a"\t"x\ty"\n"b"\t3\n'))
    assert table.to_dict("list") == {"id": ["a", "b"], "said": ["x\ty", "3"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a table of commas: it is empty"),
        ("a,b\n1,2\n3\n", "t.csv:3: 1 fields, the header has 2"),
        ("a,b\n1,2,\n3,4,x\n", "t.csv:3: 3 fields, the header has 2"),
        ("a,b,\n1,2,x\n3,4\n", "t.csv:3: 2 fields, the header has 3"),
        ("a,b,a\n1,2,3\n", "the header names 'a' more than once"),
        ("a,b\n1,\0\n", "is not text (a zero byte in line 2)"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError) as error:
        read_table(put(tmp_path / "t.csv", text))
    assert said in str(error.value)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: cannot be read: No such file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("a\nb\nü\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"is not UTF-8 text \(line 3, byte 4\)"):
        read_table(tmp_path / "latin.csv")


def test_a_column_without_a_name_is_kept_when_it_holds_something(tmp_path: Path) -> None:
    table = read_table(put(tmp_path / "t.csv", ",a\n0,x\n1,y\n"))
    assert table.to_dict("list") == {"Unnamed: 0": ["0", "1"], "a": ["x", "y"]}
    assert read_cells(put(tmp_path / "t.csv", "a,,\nx,,\n")).header == ["a"]


def test_numbers_are_numbers_and_codes_stay_text() -> None:
    table = pd.DataFrame(
        {
            "whole": ["1", "-2", "+3"],
            "real": ["0.1", "1e3", "n/a"],
            "gap": ["1", "", "3"],
            "zeros": ["007", "1", "2"],
            "long": ["20230000000000001", "20230000000000002", "n/a"],
            "word": ["1", "NA", "2"],
            "under": ["1_0", "2", "3"],
            "id": ["1", "n/a", "2"],
        },
        dtype=object,
    )
    typed = infer_types(table, BIDS_MISSING, text=["id"])
    assert typed["whole"].tolist() == [1, -2, 3] and typed["whole"].dtype == np.int64
    assert typed["real"].tolist()[:2] == [0.1, 1000.0] and np.isnan(typed["real"][2])
    assert typed["gap"].dtype == np.float64
    assert typed["zeros"].tolist() == ["007", "1", "2"]
    assert typed["long"].tolist()[:2] == ["20230000000000001", "20230000000000002"] and pd.isna(typed["long"][2])
    assert typed["word"].tolist() == ["1", "NA", "2"] and typed["under"].tolist() == ["1_0", "2", "3"]
    assert typed["id"].tolist() == ["1", "n/a", "2"]
    assert infer_types(table, CSV_MISSING)["word"].dtype == np.float64
    assert missing_words(Path("a.TSV")) == BIDS_MISSING and missing_words(Path("a.csv")) == CSV_MISSING


def test_numbers_are_read_to_the_last_bit() -> None:
    values = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.random.default_rng(1).integers(-9, 9, 1000)
    read, bad = parse_numbers([repr(value) for value in values.tolist()])
    assert (read == values).all() and bad == []
    read, bad = parse_numbers(["1", "", "x", "1_0", "nan"], empty=True)
    assert bad == [2, 3] and np.isnan(read[1:]).all()
