"""vLLM's sleep and an operator's commands as actuators, over real sockets and processes."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from control.lifecycle import Seen
from router.actuators import ActuationFailed
from router.command import Command, environment
from router.http_client import HttpClient
from router.vllm_sleep import VllmSleep

ALONE = environment(())


class Engine:
    """Answers `paths` with a status and a body, and notes what it was asked."""

    def __init__(self, **paths: tuple[int, object]) -> None:
        self.paths: Mapping[str, tuple[int, object]] = paths
        self.asked: list[str] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[HttpClient]:
        app = web.Application()
        app.router.add_route("*", "/{path}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        client = HttpClient(f"http://127.0.0.1:{runner.addresses[0][1]}")
        try:
            yield client
        finally:
            await client.close()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.path_qs} {await request.text()}".strip())
        status, body = self.paths.get(request.match_info["path"], (404, {"detail": "Not Found"}))
        return web.json_response(body, status=status)


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        ((200, {"is_sleeping": True}), Seen.STOPPED),
        ((200, {"is_sleeping": False}), Seen.RUNNING),
        ((200, {"is_sleeping": "no"}), Seen.UNKNOWN),
        ((200, []), Seen.UNKNOWN),
        ((500, {"is_sleeping": True}), Seen.UNKNOWN),
    ],
)
async def test_an_engine_sleeps_if_it_says_so(answer: tuple[int, object], seen: Seen) -> None:
    async with Engine(is_sleeping=answer).serving() as client:
        assert (await VllmSleep(client, 1, 5.0).look()).seen is seen


async def test_an_engine_without_sleep_mode_is_unknown_and_says_what_it_lacks() -> None:
    async with Engine().serving() as client:
        actuator = VllmSleep(client, 1, 5.0)
        assert "--enable-sleep-mode" in (await actuator.look()).why
        with pytest.raises(ActuationFailed, match="VLLM_SERVER_DEV_MODE=1"):
            await actuator.stop()


async def test_an_engine_that_is_gone_is_unknown() -> None:
    client = HttpClient("http://127.0.0.1:1")
    actuator = VllmSleep(client, 1, 5.0)
    assert (await actuator.look()).seen is Seen.UNKNOWN
    with pytest.raises(ActuationFailed):
        await actuator.start()
    await client.close()


async def test_level_one_sleeps_and_wakes_in_one_call_each() -> None:
    engine = Engine(sleep=(200, {}), wake_up=(200, {}))
    async with engine.serving() as client:
        actuator = VllmSleep(client, 1, 5.0)
        await actuator.stop()
        await actuator.start()
    assert engine.asked == ["POST /sleep?level=1&mode=wait", "POST /wake_up"]


async def test_level_two_loads_the_weights_before_there_is_a_cache() -> None:
    engine = Engine(
        sleep=(200, {}), wake_up=(200, {}), collective_rpc=(200, {}), reset_prefix_cache=(200, {})
    )
    async with engine.serving() as client:
        actuator = VllmSleep(client, 2, 5.0)
        await actuator.stop()
        await actuator.start()
    assert engine.asked == [
        "POST /sleep?level=2&mode=wait",
        "POST /wake_up?tags=weights",
        'POST /collective_rpc {"method":"reload_weights"}',
        "POST /wake_up?tags=kv_cache",
        "POST /reset_prefix_cache",
    ]


def command(client: HttpClient, start: list[str], patience: float = 20.0) -> Command:
    return Command(client, "/health", start, ["false"], (patience, patience), ALONE)


async def test_a_command_runs_without_a_shell_and_sees_no_secrets(tmp_path: Path) -> None:
    said = tmp_path / "said"
    code = f"import os,sys; open({str(said)!r},'w').write(repr((sys.argv[1:], sorted(os.environ))))"
    os.environ["SECRET_OF_THE_GATEWAY"] = "s3cret"
    try:
        async with Engine().serving() as client:
            await command(client, [sys.executable, "-c", code, "$HOME; rm -rf *"]).start()
    finally:
        del os.environ["SECRET_OF_THE_GATEWAY"]
    arguments, variables = eval(said.read_text())
    assert arguments == ["$HOME; rm -rf *"]
    assert set(variables) <= {"PATH", "HOME", "LANG", "LC_CTYPE"}


def test_variables_that_are_named_are_passed_on() -> None:
    assert set(environment(("PWD", "NOBODY_SET_THIS"))) <= {"PATH", "HOME", "LANG", "PWD"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([sys.executable, "-c", "import sys; sys.exit('no GPU\\nis free')"], "ended with 1: is free"),
        ([sys.executable, "-c", "raise SystemExit(3)"], "ended with 3: it said nothing"),
        (["/no/such/program"], "No such file"),
    ],
)
async def test_a_command_that_fails_says_why(words: list[str], says: str) -> None:
    async with Engine().serving() as client:
        with pytest.raises(ActuationFailed, match=says):
            await command(client, words).start()


async def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid}; wait"
    async with Engine().serving() as client:
        with pytest.raises(ActuationFailed, match="did not end in 1 s"):
            await command(client, ["/bin/sh", "-c", script], patience=1.0).start()
    child = int(pid.read_text())
    for _ in range(2000):
        if not _runs(child):
            break
        await asyncio.sleep(0.01)
    assert not _runs(child)


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX"
    return False


async def test_what_a_command_leaves_running_does_not_keep_it(tmp_path: Path) -> None:
    async with Engine().serving() as client:
        script = f"sleep 30 & echo $! > {tmp_path / 'pid'}"
        await command(client, ["/bin/sh", "-c", script]).start()
    os.kill(int((tmp_path / "pid").read_text()), 9)


async def test_health_says_whether_it_runs_and_silence_three_times_that_it_stopped() -> None:
    engine = Engine(health=(200, {}))
    async with engine.serving() as client:
        actuator = command(client, ["true"])
        assert (await actuator.look()).seen is Seen.RUNNING
        engine.paths = {"health": (503, {})}
        assert (await actuator.look()).seen is Seen.UNKNOWN
    gone = HttpClient("http://127.0.0.1:1")
    actuator = command(gone, ["true"])
    assert [(await actuator.look()).seen for _ in range(3)] == [Seen.UNKNOWN, Seen.UNKNOWN, Seen.STOPPED]
    await gone.close()
