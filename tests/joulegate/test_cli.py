"""The command line: lazy, brief, and never a traceback unless asked for."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from joulegate import __version__
from joulegate.cli import COMMANDS, Command, run

HEAVY = {"fastapi", "httpx", "numpy", "pydantic", "redis", "ruamel", "scipy", "sklearn", "typer", "uvicorn"}
TABLE = {
    "add": Command("sample_room:add", "add two numbers"),
    "boom": Command("sample_room:boom", "fail"),
    "refuse": Command("sample_room:refuse", "refuse"),
    "group one": Command("sample_room:one", "first of a group"),
    "group two": Command("sample_room:one", "second of a group"),
}
ROOM = '''
import asyncio, sys, time
from typing import Annotated
import typer
from joulegate.errors import UserError

def add(first: int, second: Annotated[int, typer.Option("--second", "-s")] = 1) -> None:
    """Add two numbers."""
    sys.stdout.write(f"{first + second}\\n")

def boom() -> None:
    raise ValueError("it broke")

def refuse() -> None:
    async def inner():
        raise UserError("the node is down", "start it", status=3)
    async def outer():
        async with asyncio.TaskGroup() as group:
            group.create_task(inner())
    asyncio.run(outer())

def one(long: bool = False, wait: bool = False) -> int:
    if wait:
        sys.stdout.write("ready\\n")
        sys.stdout.flush()
        time.sleep(60)
    if long:
        for _ in range(100_000):
            sys.stdout.write("a line of a long answer\\n")
    return 7
'''


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sample_room.py").write_text(ROOM)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("sample_room", None)
    return tmp_path


def test_a_full_disk_is_not_called_a_fault_of_ours() -> None:
    code = "from joulegate.cli import main; main()"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code, "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot write: No space left on device\n  help: ")


MAIN = [sys.executable, "-c", "from joulegate.cli import main; main()"]


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_a_stream_that_was_closed_is_no_fault_of_ours(closed: str, tmp_path: Path) -> None:
    """Nor does a file of ours take its number: what a library prints would be written into it."""
    (tmp_path / "gateway.yaml").write_text("version: 2\n")
    command = shlex.join([*MAIN, "config", "check", str(tmp_path / "gateway.yaml")])
    done = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == ""
    assert ("expected one of 1" in done.stdout) == (">&-" not in closed.split())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_is_printed_in_any_encoding(encoding: str, tmp_path: Path) -> None:
    yaml = tmp_path / "gateway-\u6a21.yaml"
    yaml.write_text('version: 1\nmodels: [{name: "\u6a21"}]\n', encoding="utf-8")
    for command, wanted in (("check", b"models.0.pools: is missing"), ("check --json", b'"ok": false')):
        done = subprocess.run(
            [*MAIN, "config", *command.split(), str(yaml)],
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
        assert done.returncode == 2
        assert wanted in done.stdout
        assert done.stderr == b""


def start(room: Path, *arguments: str) -> subprocess.Popen[bytes]:
    code = dedent("""
        import sys
        from joulegate.cli import Command, run
        table = {"group one": Command("sample_room:one", "")}
        sys.exit(run(sys.argv[1:], table))
    """)
    path = os.pathsep.join([str(room), str(Path(__file__).parents[2])])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from joulegate.cli import run, COMMANDS; run(['--help'], COMMANDS); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listing, _, modules = done.stdout.rstrip().rpartition("\n")
    assert all(f"  {words} " in listing for words in COMMANDS)
    assert not HEAVY & {name.partition(".")[0] for name in modules.split()}


def test_every_command_explains_itself_and_loads_nothing_heavy_to_do_so() -> None:
    code = dedent("""
        import sys
        from joulegate.cli import run, COMMANDS
        for words in COMMANDS:
            assert run([*words.split(), '--help'], COMMANDS) == 0, words
        print(*sys.modules)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.rpartition("Options:")[2].split()}
    # `config` declares models, `profile` is one module with its client
    assert not loaded & HEAVY - {"typer", "pydantic", "ruamel", "httpx"}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"], COMMANDS) == 0
    assert capsys.readouterr().out == f"joulegate {__version__}\n"


def test_python_m_joulegate_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "joulegate", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"joulegate {__version__}\n"


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize(
    ("arguments", "status", "out", "err"),
    [
        pytest.param(["add", "1", "-s", "4"], 0, "5\n", "", id="runs"),
        pytest.param(["group", "one"], 7, "", "", id="status of its own"),
        pytest.param(["ad"], 2, "", "error: no such command: ad\n  help: did you mean 'add'?\n", id="near"),
        pytest.param(["group", "tow"], 2, "", "did you mean 'group two'?", id="near in a group"),
        pytest.param(["xyzzy"], 2, "", "help: joulegate --help lists the commands", id="nothing near"),
        pytest.param(["add", "1", "--secnd", "4"], 2, "", "help: did you mean '--second'?", id="option"),
        pytest.param(["add", "one"], 2, "", "help: joulegate add --help says what it takes", id="bad value"),
        pytest.param(["add"], 2, "", "error: Missing argument 'first'", id="missing"),
        pytest.param(
            ["refuse"], 3, "", "error: the node is down\n  help: start it\n", id="inside a task group"
        ),
        pytest.param(["boom"], 1, "", "error: unexpected ValueError: it broke", id="unexpected"),
        pytest.param(["group"], 2, "group two  second of a group", "", id="group alone"),
        pytest.param(["group", "--help"], 0, "group two  second of a group", "", id="group help"),
        pytest.param(["add", "--help"], 0, "Add two numbers.", "", id="command help"),
        pytest.param([], 2, "usage: joulegate COMMAND", "", id="nothing"),
    ],
)
def test_what_is_said_and_returned(
    arguments: list[str], status: int, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments, TABLE) == status
    said = capsys.readouterr()
    assert out in said.out
    assert err in said.err
    assert "Traceback" not in said.err
    assert bool(err) == bool(said.err)


@pytest.mark.usefixtures("room")
def test_verbose_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["boom", "--verbose"], TABLE) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_ends_quietly(room: Path) -> None:
    with start(room, "group", "one", "--wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert said == b""


def test_a_reader_that_leaves_is_no_error(room: Path) -> None:
    with start(room, "group", "one", "--long") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 1
