import gzip
from pathlib import Path

import pytest

from joulegate.errors import UserError
from simulator.trace_file import Arrival, Window, read_trace

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
        pytest.param(f"{HEADER}\n5,1,1\n1,1,1\n", ":3: time goes back", id="order"),
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


def test_a_window_is_shifted_sped_up_limited_and_clipped() -> None:
    arrivals = tuple(Arrival(float(at), 100 * at + 1, 10 * at + 1) for at in range(10))
    window = Window(start=2, duration=5, limit=3, speed=2.0, clip_input=250, clip_output=35)
    assert window.cut(arrivals) == (
        Arrival(0.0, 201, 21),
        Arrival(0.5, 250, 31),
        Arrival(1.0, 250, 35),
    )
