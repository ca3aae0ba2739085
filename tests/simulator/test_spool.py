"""A trace on disk gives what the file says, in order of time, as often as it is asked."""

import random
from pathlib import Path

import numpy as np
import pytest

from joulegate.arrivals import read_trace
from joulegate.errors import UserError
from simulator.spool import SORTED, read_load, spooled
from simulator.workload import census, held

HEADER = "timestamp_s,input_tokens,output_tokens"


def written(folder: Path, rows: list[tuple[float, int, int]]) -> Path:
    path = folder / "trace.csv"
    path.write_text("\n".join([HEADER, *(f"{at:.3f},{i},{o}" for at, i, o in rows)]) + "\n")
    return path


def made(count: int) -> list[tuple[float, int, int]]:
    draw = random.Random(1)
    return [(10.0 + n // 3 * 0.25, draw.randrange(1, 5000), draw.randrange(0, 300)) for n in range(count)]


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("count", [5, SORTED + 4000])
def test_a_trace_on_disk_is_the_trace_by_time_and_from_zero(
    tmp_path: Path, count: int, shuffled: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = made(count)
    if shuffled:
        random.Random(2).shuffle(rows)
    path = written(tmp_path, rows)
    spool = spooled(path, tmp_path)
    assert ("not in order of time: sorted" in capsys.readouterr().err) == shuffled
    arrivals = read_trace(path)
    for _ in range(2):
        found = held(spool)
        assert np.array_equal(found.at, np.array([a.at - arrivals[0].at for a in arrivals]))
        assert found.input.tolist() == [a.input_tokens for a in arrivals]
        assert found.output.tolist() == [a.output_tokens for a in arrivals]
    assert census(spool).count == len(arrivals)
    assert spool.span == arrivals[-1].at - arrivals[0].at
    assert len(list(tmp_path.glob("*.trace"))) == 1


def test_a_wrong_row_is_named_and_dates_count_from_the_first(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(f"{HEADER}\n0,1,1\n1,x,1\n")
    with pytest.raises(UserError, match=r"trace\.csv:3"):
        read_load(path)
    path.write_text(f"{HEADER}\n2023-11-16 18:15:46,5,1\n2023-11-16 18:15:48.5,5,2\n")
    assert read_load(path).at.tolist() == [0.0, 2.5]
