"""A recording has a bounded size, is its owner's, and never stands in the way of requests."""

from pathlib import Path

import pytest

from joulegate.cli import COMMANDS, run
from joulegate.errors import UserError
from router.record_file import RecordFile


def test_it_ends_before_it_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "record"
    file = RecordFile(path, most=25)
    for _ in range(5):
        file.write(b"ten bytes\n")
    assert path.read_bytes() == b"ten bytes\n" * 2
    file.close()


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    RecordFile(tmp_path / "record").close()
    assert (tmp_path / "record").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_ends_the_recording_and_nothing_else() -> None:
    file = RecordFile(Path("/dev/full"))
    for _ in range(5):
        file.write(b"x" * 2**17)
    file.close()


def test_a_place_that_cannot_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot record"):
        RecordFile(tmp_path / "no" / "record")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("hello\n", "is no recording of this version", id="text"),
        pytest.param("[1, 2]\n", "is no recording of this version", id="other JSON"),
        pytest.param("", "has no decision in it", id="empty"),
    ],
)
def test_what_is_no_recording_is_said_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (tmp_path / "record").write_text(text)
    assert run(["recheck", str(tmp_path / "record")], COMMANDS) == 2
    assert said in capsys.readouterr().err
