"""Shell: instructions that a request and a streamed chunk take in the gateway's process, without sockets.

Counted by valgrind's cachegrind: what else the machine does makes no difference, and a change of code shows
to a hundredth. The kernel's part, uvloop's and the control tick's are not in it, nor what is learned from
answers (at most 400 a second).
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.server import ServerState

from benchmarks.fake_upstream import Answers
from benchmarks.load import request_bytes
from benchmarks.proxies import API_KEY, ROOT
from benchmarks.stages import fleet_gate
from router.guard import guard
from router.keys import KeyEntry, Keys, digest
from router.limits import EdgeLimits, RelayLimits, UpstreamLimits
from router.ports import Caller
from router.relay import Relay
from router.upstream import UpstreamPool

COUNTED = re.compile(r"I\s+refs:\s+([\d,]+)")
KINDS = {"request": (200, 1200), "chunk": (2000, 12000)}  # of each, in two runs: both set up the same
STREAM_CHUNKS = 100
PROMPTS = 64


class Wire(asyncio.Transport):
    """A socket whose other end takes everything; `told` hears of every write."""

    def __init__(self, told: Callable[[], object]) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self._told = told

    def write(self, data: Any) -> None:
        self._told()

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        """Nothing comes unasked."""

    resume_reading = abort = pause_reading


class Loop(asyncio.SelectorEventLoop):
    """Whoever connects gets a Wire; `asked` are the connections whose answer is due."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[asyncio.Protocol] = []

    async def create_connection(self, protocol_factory: Any, *_: Any, **__: Any) -> Any:
        protocol = protocol_factory()
        wire = Wire(lambda: self.asked.append(protocol))
        protocol.connection_made(wire)
        return wire, protocol


async def serve(kind: str, times: int, asked: list[asyncio.Protocol]) -> None:
    """Serve `times` requests, or streams of so many chunks in all."""
    gate, engines = fleet_gate(8), UpstreamPool(UpstreamLimits())
    keys = Keys([KeyEntry(digest(API_KEY), Caller("bench"))])
    relay = Relay(gate, engines, keys, RelayLimits(), lambda error: None)
    made: Any = guard(EdgeLimits(), relay)
    config = uvicorn.Config(lambda scope: None, http=made, log_config=None)
    config.load()
    edge = made(config=config, server_state=ServerState(), app_state={})
    written: list[None] = []
    edge.connection_made(Wire(lambda: written.append(None)))
    streams = kind == "chunk"
    requests, reads = asking(streams), answering(streams)
    for number in range(times // STREAM_CHUNKS if streams else times):
        edge.data_received(requests[number % PROMPTS])
        engine = await next_asked(asked)
        for read in reads:
            engine.data_received(read)
    if len(written) < times:
        sys.exit("error: an answer was lost")
    await engines.aclose()


async def next_asked(asked: list[asyncio.Protocol]) -> asyncio.Protocol:
    """Only the first request of a connection takes rounds of the loop until it is sent."""
    for _ in range(100):
        if asked:
            break
        await asyncio.sleep(0)
    return asked.pop()


def asking(stream: bool) -> list[bytes]:
    mode = "stream" if stream else "closed"
    options = argparse.Namespace(mode=mode, prompt_bytes=1000, api_key=API_KEY, port=8080)
    return [request_bytes(options, number) for number in range(PROMPTS)]


def answering(stream: bool) -> list[bytes]:
    """What an engine's answer looks like to the socket, read by read."""
    answers = Answers(STREAM_CHUNKS)
    if not stream:
        return [answers.completion]
    return [answers.stream_head, *[answers.token] * STREAM_CHUNKS, answers.usage + answers.done]


def counted(kind: str, times: int) -> int:
    """Instructions of a process that serves so many."""
    argv = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    argv += [sys.executable, "-m", "benchmarks.instructions", "--serve", kind, str(times)]
    told = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        argv, cwd=ROOT, env=told, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    found = COUNTED.search(done.stderr)
    if done.returncode or found is None:
        sys.exit(f"error: {done.stderr[-2000:]}")
    return int(found[1].replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench instructions", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "TIMES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        with asyncio.Runner(loop_factory=Loop) as runner:
            loop = cast("Loop", runner.get_loop())
            runner.run(serve(options.serve[0], int(options.serve[1]), loop.asked))
        return
    figures = {}
    for kind, (few, many) in KINDS.items():
        figures[kind] = round((counted(kind, many) - counted(kind, few)) / (many - few))
        sys.stdout.write(f"{kind:<10}{figures[kind]:>10,} instructions\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
