"""Shell: `joulegate demo`: two emulated fleets, one trace, one of them under Joulegate.

Both gateways get the same arrivals at the same instants from one load generator. One runs in `enforce`, the
other in `observe`, which never touches a clock; everything else about the two sides is the same, hidden
parameters included. Energy is what the emulated GPUs drew from the first arrival until the last answer is
out on both.
"""

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from joulegate.arrivals import Arrival
from joulegate.domain import Cuts, Objectives
from joulegate.errors import UserError
from joulegate.units import Seconds
from simulator.children import die_with_parent, free_ports
from simulator.demo_site import INSTANCES_PER_POOL, MODEL, POOLS, Side
from simulator.demo_static import StaticClock, best_static
from simulator.demo_summary import DemoResult, SideResult, residency
from simulator.emulator import read_profile
from simulator.fetch import fetch_json
from simulator.loadgen import Sender, Target, finish, play
from simulator.replay_report import Engine, summary

OBJECTIVES = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, 1.2)  # the defaults
PATIENCE = 30.0  # seconds without a byte after which the rest counts as lost
LOOK_EVERY = 1.0  # seconds between two looks at the fleets
Picture = dict[str, Any]
Watch = Callable[[Picture, float, float, float | None], None]


@dataclass(frozen=True, slots=True)
class Demo:
    """What to run. `watch` is shown the fleets once a second."""

    folder: Path
    profile: Path
    arrivals: Sequence[Arrival]
    watch: Watch
    say: Callable[[str], None]


@dataclass(slots=True)
class _Meter:
    """Energy and clocks of one side."""

    side: Side
    joules_before: float = 0.0
    joules: float = 0.0
    stats: Picture | None = None
    samples: Counter[int] | None = None

    async def start(self) -> None:
        self.samples = Counter()
        self.joules_before = (await self._stats())["joules"]

    async def stop(self) -> None:
        self.stats = await self._stats()
        self.joules = self.stats["joules"] - self.joules_before

    async def look(self) -> Picture:
        """The gateway's picture; clocks are sampled on the way."""
        picture = await fetch_json(f"{self.side.url}/admin/fleet") or {"models": [], "agents": []}
        latest = await fetch_json(f"{self.side.url}/admin/decisions?last=1") or {"decisions": []}
        picture["latest"] = [decision["sentence"] for decision in latest["decisions"]]
        for agent in picture["agents"]:
            for gpu in agent["gpus"]:
                assert self.samples is not None
                self.samples[gpu["clock_mhz"]] += 1
        return picture

    async def now(self) -> float:
        """Joules since the start."""
        return float((await self._stats())["joules"]) - self.joules_before

    async def _stats(self) -> Picture:
        stats: Picture | None = await fetch_json(f"{self.side.engines[0]}/emulator/stats")
        if stats is None:
            raise UserError(f"the emulator of {self.side.name} does not answer", status=1)
        return stats


@contextlib.asynccontextmanager
async def standing(demo: Demo) -> AsyncIterator[tuple[Side, Side]]:
    """Both sides up; stopped on the way out, whatever happens."""
    engines = len(POOLS) * INSTANCES_PER_POOL
    sides = []
    for name, mode in (("joulegate", "enforce"), ("default", "observe")):
        folder = demo.folder / name
        folder.mkdir()
        side = Side(name, mode, folder, demo.profile, free_ports(engines + 1))
        side.write()
        sides.append(side)
    try:
        demo.say("starting two emulated fleets: 2 x 6 H100s, agents, watchdogs, gateways")
        await asyncio.gather(*(side.start() for side in sides))
        await sides[0].proven()  # it asks its engines for a few tokens: before either fleet is measured
        tending = asyncio.create_task(_tend(demo, sides))
        try:
            yield sides[0], sides[1]
        finally:
            tending.cancel()
            await asyncio.gather(tending, return_exceptions=True)
    finally:
        for side in sides:
            side.stop()


async def _tend(demo: Demo, sides: Sequence[Side]) -> None:
    while True:
        for side in sides:
            if side.revive():
                demo.say(f"the agent of {side.name} stood still and was ended by its watchdog: started again")
        await asyncio.sleep(LOOK_EVERY)


async def run(demo: Demo, sides: tuple[Side, Side]) -> DemoResult:
    """Play the arrivals to both sides and compare."""
    meters = [_Meter(side) for side in sides]
    senders = [Sender(Target(side.url, MODEL, Engine.EMULATED)) for side in sides]
    await asyncio.gather(*(meter.start() for meter in meters))
    began = time.monotonic()
    looking = asyncio.create_task(_look(demo, meters, began))
    asking = asyncio.create_task(_ask(sides, demo.arrivals[-1].at))
    try:
        await play(demo.arrivals, senders, lambda _: None)
        await finish(senders, PATIENCE, lambda _: None)
        client = await asking
        await asyncio.gather(*(meter.stop() for meter in meters))
    finally:
        looking.cancel()
        asking.cancel()
        await asyncio.gather(looking, asking, return_exceptions=True)
    seconds = time.monotonic() - began
    demo.say("computing the best static clock on the same arrivals")
    static = await asyncio.to_thread(_static, demo)
    ours, theirs = await asyncio.gather(*map(_side_result, meters, senders))
    return DemoResult(ours, theirs, static, seconds, client["streams"], client["errors"])


async def _look(demo: Demo, meters: Sequence[_Meter], began: float) -> None:
    while True:
        ours, theirs = await asyncio.gather(*(meter.look() for meter in meters))
        joules = await asyncio.gather(*(meter.now() for meter in meters))
        saved = 1.0 - joules[0] / joules[1] if joules[1] > 0 else None
        watts = sum(i["watts"] or 0.0 for m in theirs["models"] for p in m["pools"] for i in p["instances"])
        demo.watch(ours, watts, time.monotonic() - began, saved)
        await asyncio.sleep(LOOK_EVERY)


async def _ask(sides: Sequence[Side], seconds: float) -> dict[str, int]:
    """The unmodified client, in a process of its own."""
    words = ["-m", "simulator.demo_client", str(seconds), MODEL, *(side.url for side in sides)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *words,
        stdout=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C is for us
        preexec_fn=die_with_parent,
    )
    try:
        printed, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        return {"streams": 0, "errors": 1}
    counts: dict[str, int] = orjson.loads(printed)
    return counts


def _static(demo: Demo) -> StaticClock:
    pool_of = {kind: pool for pool, kinds in POOLS.items() for kind in kinds}
    arrivals = [(a.at, a.input_tokens, a.output_tokens) for a in demo.arrivals]
    profile = read_profile(demo.profile)
    return best_static(profile, arrivals, pool_of, INSTANCES_PER_POOL, OBJECTIVES, Cuts())


async def _side_result(meter: _Meter, sender: Sender) -> SideResult:
    picture = await fetch_json(f"{meter.side.url}/admin/fleet")
    instances = [i for m in picture["models"] for p in m["pools"] for i in p["instances"]]
    assert meter.stats is not None
    assert meter.samples is not None
    return SideResult(
        replay=summary(sender.tally, OBJECTIVES, Cuts()),
        joules=meter.joules,
        lateness_ms=meter.stats["lateness_ms"]["p99"],
        clock_changes=sum(instance["clock_changes"] for instance in instances),
        residency=residency(meter.samples),
    )
