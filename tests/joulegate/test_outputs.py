"""Where a result cannot be written, that is said before the work, and not after it."""

import json
import sys
from pathlib import Path

import pytest

from joulegate.cli import COMMANDS, run
from joulegate.errors import UserError
from joulegate.outputs import file_for, folder_for, print_json, write_text

ROOT = Path(__file__).parents[2]


def test_a_folder_is_made_and_what_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    assert file_for(path) == path
    assert path.parent.is_dir()
    path.write_text("kept")
    assert file_for(path).read_text() == "kept"
    assert folder_for(path.parent) == path.parent


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="it is a folder"):
        file_for(tmp_path)
    with pytest.raises(UserError, match="File name too long"):
        file_for(tmp_path / ("x" * 300))
    with pytest.raises(UserError, match=r"cannot write .*: it is a folder"):
        write_text(tmp_path, "")
    with pytest.raises(UserError, match=r"cannot make the folder .*file: File exists"):
        folder_for(tmp_path / "file")
    with pytest.raises(UserError, match="cannot make the folder"):
        file_for(tmp_path / "file" / "result.json")


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--json"],
        ["simulate", str(ROOT / "configs/scenarios/s2-d.yaml"), "--out"],
        ["train", "latency", "--data", "no.csv", "--out"],
        ["train", "length", "--data", "no.jsonl", "--out"],
    ],
    ids=lambda words: " ".join(words[:2]) if isinstance(words, list) else None,
)
def test_commands_ask_before_they_work(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file"
    assert run([*words, str(target if "simulate" in words else target / "result")], COMMANDS) == 2
    assert "cannot make the folder" in capsys.readouterr().err


def test_json_is_utf8_in_any_locale(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(1, "w", encoding="ascii", closefd=False) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        print_json({"model": "caf\u00e9"})
    assert json.loads(capfdbinary.readouterr().out.decode("utf-8")) == {"model": "caf\u00e9"}
