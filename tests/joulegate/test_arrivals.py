import gzip
from pathlib import Path

import pytest

from joulegate.arrivals import Arrival, read_trace
from joulegate.errors import UserError

HEADER = "timestamp_s,input_tokens,output_tokens"


def write(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text)
    return path


def test_a_trace_is_read_with_and_without_a_tenant(tmp_path: Path) -> None:
    plain = read_trace(write(tmp_path, f"{HEADER}\n0.0,374,44\n4.3146,396,109\n"))
    assert plain == (Arrival(0.0, 374, 44), Arrival(4.3146, 396, 109))
    tenants = read_trace(write(tmp_path, f"{HEADER},tenant\n1,2,3,a\n"))
    assert tenants == (Arrival(1.0, 2, 3, "a"),)


def test_a_trace_is_read_as_spreadsheets_write_it(tmp_path: Path) -> None:
    assert read_trace(write(tmp_path, f"\ufeff{HEADER}\r\n0.5,374.0,44.0\r\n")) == (Arrival(0.5, 374, 44),)


def test_a_gzipped_trace_is_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(f"{HEADER}\n0,1,1\n".encode()))
    assert read_trace(path) == (Arrival(0.0, 1, 1),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a,b\n1,2\n", ":1: column 'timestamp_s' is missing", id="header"),
        pytest.param(f"{HEADER}\n0,1,1\n1,x,1\n", ":3: could not convert", id="not a number"),
        pytest.param(f"{HEADER}\n0,1,1.5\n", ":2: '1.5' is no whole number", id="half a token"),
        pytest.param(f"{HEADER}\n0,1,inf\n", ":2: 'inf' is no whole number", id="no end"),
        pytest.param(f"{HEADER}\n0,1,1\n1,1\n", ":3: 2 columns", id="short row"),
        pytest.param(f"{HEADER}\n0,1,-1\n", ":2: 1 input and -1", id="less than none"),
        pytest.param(f"{HEADER}\nsoon,1,1\n", ":2: 'soon' is neither seconds nor a date", id="no time"),
        pytest.param(f"{HEADER}\n1700000000000,1,1\n", ":2: timestamp_s is", id="milliseconds"),
        pytest.param(f"{HEADER}\n0,1,1\n1700000000,1,1\n", "between its first and its last", id="both"),
        pytest.param(f"{HEADER}\n0,1,0\n", "no row has output tokens", id="nothing generated"),
        pytest.param(f"{HEADER}\n0,0,1\n", ":2: 0 input", id="no input"),
        pytest.param(f"{HEADER}\nnan,1,1\n", ":2: timestamp_s is nan", id="nan"),
        pytest.param(f"{HEADER}\n-1,1,1\n", ":2: timestamp_s is -1", id="negative"),
        pytest.param(f"{HEADER}\n", "holds no requests", id="empty"),
        pytest.param("", ":1: column", id="nothing"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_trace(write(tmp_path, text))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"trace\.csv"):
        read_trace(path)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        read_trace(tmp_path / "none.csv")


DATES = [
    "2023-11-16 18:15:46.6805900",
    "2023-11-16T18:15:46.68059",
    "2023-11-16 18:15:46.680590+00:00",
    "2023-11-16T19:15:46.680590+01:00",
    "1700158546.68059",
]


@pytest.mark.parametrize("start", DATES)
@pytest.mark.parametrize(
    "header",
    [
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "arrival_timestamp,prompt_size,token_size",
        "timestamp_s,input_tokens,output_tokens",
    ],
)
def test_headers_and_times_of_others_are_read(
    tmp_path: Path, start: str, header: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"{header}\n{start},374,44\n2023-11-16 18:15:50.9951900,396,109\n"
    first, second = read_trace(write(tmp_path, text))
    assert first == Arrival(0.0, 374, 44)
    assert (second.input_tokens, second.output_tokens) == (396, 109)
    assert second.at == pytest.approx(4.3146, abs=1e-5)
    assert "made seconds from the first request" in capsys.readouterr().err


def test_rows_are_sorted_and_those_that_generate_nothing_left_out_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read_trace(write(tmp_path, f"{HEADER}\n5,1,1\n1,2,2\n3,4,0\n1,3,3\n"))
    assert found == (Arrival(1.0, 2, 2), Arrival(1.0, 3, 3), Arrival(5.0, 1, 1))
    said = capsys.readouterr().err
    assert "not in order of time: sorted" in said
    assert "1 of 4 rows have no output tokens" in said


def test_a_short_row_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        read_trace(write(tmp_path, f"{HEADER}\n0,1\n"))
    assert "timestamp_s,input_tokens,output_tokens" in raised.value.help
