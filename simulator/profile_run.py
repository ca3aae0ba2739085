"""Shell: `joulegate profile`: sweep a live engine over clock, batch, context and prompt length."""

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Annotated

import orjson
import typer

from joulegate.addresses import agent_url, key_of, typed
from joulegate.errors import UserError
from joulegate.outputs import print_json
from joulegate.units import MegaHertz, Seconds
from predictor.latency_data import read_sweeps
from predictor.sweep import (
    SETTLE,
    Grid,
    LoadCurve,
    Point,
    Probe,
    duration,
    energy_curves,
    iteration_guess,
    median_error,
    output_tokens,
    plan,
    spread,
)
from simulator.loadgen_http import fetch
from simulator.profile_agent import Agent, Meter, agent_of
from simulator.profile_engine import LiveEngine, Window
from simulator.profile_file import Subject, append, done, idle_point

ONE_SPEED = MegaHertz(1)  # stands for the only clock of an engine nobody can read a clock of
NO_LIMIT = 1 << 30  # tokens
IDLE_WINDOW = 2.0  # s
PROBE_PROMPT, PROBE_OUTPUT = 256, 48
BLOCKS = re.compile(rb'cache_config_info\{[^}]*block_size="(\d+)"[^}]*num_gpu_blocks="(\d+)"')

Url = Annotated[str, typer.Option(help="The engine: http://host:port of a vLLM server.", show_default=False)]
Out = Annotated[Path, typer.Option(help="CSV to write; one that exists is gone on with.", show_default=False)]
Numbers = Annotated[str, typer.Option(help="Comma separated.")]


@dataclass(frozen=True, slots=True)
class Run:
    """One sweep: what it sweeps, with what, into which file."""

    engine: LiveEngine
    agent: Agent | None
    writes: bool  # whether clocks are set
    grid: Grid
    repeats: int  # of every point; the median one counts
    subject: Subject
    out: Path


@dataclass(frozen=True, slots=True)
class Measured:
    """One point, once."""

    window: Window
    watts: float | None  # per GPU
    capped: bool  # the board's limit set the pace


@dataclass(frozen=True, slots=True)
class Place:
    """Where the instance is: its server, its node's agent, its GPUs (none named: the only one)."""

    url: str
    api_key: str | None
    agent: str  # empty: none
    token: str | None
    uuids: tuple[str, ...]
    writes: bool  # whether clocks may be set


def profile(
    url: Url,
    out: Out,
    agent: Annotated[
        str, typer.Option(help="The node's agent: http(s)://host:port or unix:/path. Gives power and clocks.")
    ] = "",
    fixed_clock: Annotated[
        bool, typer.Option("--fixed-clock", help="Set no clock: sweep at the one there is.")
    ] = False,
    gpus: Numbers = "",
    clocks: Annotated[int, typer.Option(help="How many clocks, evenly from lowest to highest.")] = 8,
    batches: Numbers = "1,2,4,8,16,32,64",
    contexts: Numbers = "256,1024,4096",
    prompts: Numbers = "128,512,2048,8192",
    window: Annotated[float, typer.Option(help="Seconds each point is watched, about.")] = 1.5,
    repeats: Annotated[
        int, typer.Option(min=1, help="Rounds over a clock's points; the median counts. For noise.")
    ] = 1,
    agent_token: Annotated[
        str, typer.Option(envvar="JOULEGATE_AGENT_TOKEN", help="For an agent on TCP.")
    ] = "",
    api_key: Annotated[str, typer.Option(envvar="JOULEGATE_API_KEY", help="If the engine wants one.")] = "",
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Say what would be done and how long it takes.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the curves as JSON.")] = False,
) -> None:
    """Measure iteration time, prefill time and power of a live engine; then say which clock is worth it.

    Nothing else should use the engine meanwhile. Ctrl-C gives the clocks back; the same command goes on.
    """
    if not agent and not fixed_clock:
        raise UserError("one of --agent and --fixed-clock is needed", "--fixed-clock sets no clocks")
    grid = Grid(_numbers(batches), _numbers(contexts), _numbers(prompts), Seconds(window))
    uuids = tuple(part for part in gpus.split(",") if part)
    node = agent and typed(agent, agent_url)
    place = Place(typed(url), key_of(api_key), node, key_of(agent_token), uuids, not fixed_clock)
    tp = asyncio.run(_profile(place, grid, clocks, repeats, out, plan_only))
    if plan_only:
        return
    with out.open(newline="") as lines:
        sweeps, _ = read_sweeps(lines, str(out))
    curves = [curve for sweep in sweeps for curve in energy_curves(sweep.rows, tp)]
    if json:
        print_json(curves)
    else:
        sys.stdout.write(_text(curves))


async def _profile(place: Place, grid: Grid, count: int, repeats: int, out: Path, plan_only: bool) -> int:
    """Returns the GPUs of the instance."""
    url, key, writes = place.url, place.api_key, place.writes
    async with contextlib.AsyncExitStack() as stack:
        agent = None
        if place.agent:
            agent = await stack.enter_async_context(agent_of(place.agent, place.token, place.uuids))
        model, grid = await _fitted(url, key, grid)
        engine = LiveEngine(
            url, model, key, Random()
        )  # never the prompts of an earlier run: they may be cached
        stack.callback(engine.close)
        tp = len(agent.infos) if agent else 1
        subject = Subject(agent.infos[0].name if agent else "unknown", await _stack_of(url, key), model, tp)
        ladder = await _ladder(agent, writes, count)
        run = Run(engine, agent, writes, grid, repeats, subject, out)
        points = plan(grid, ladder, done(out, subject))
        probe = await _probe(engine)
        about = Seconds(repeats * duration(points, probe, ladder[-1], grid.window))
        _say(f"{len(points)} points at {len(ladder)} clocks, about {_long(about)}")
        if plan_only or not points:
            return tp
        await stack.enter_async_context(_clocks_held(agent, writes))
        await _sweep(run, points, probe, ladder[-1])
        return tp


@contextlib.asynccontextmanager
async def _clocks_held(agent: Agent | None, writes: bool) -> AsyncIterator[None]:
    if agent is None or not writes:
        yield
        return
    async with agent:
        try:
            yield
        finally:
            _say("giving the clocks back")


async def _sweep(run: Run, points: Sequence[Point], probe: Probe, top: MegaHertz) -> None:
    idle = None if run.agent is None else await _idle_watts(run.agent)
    if idle is not None and idle_point(top).key not in done(run.out, run.subject):
        append(run.out, run.subject, idle_point(top), 0.0, idle)
    about = run.repeats * duration(points, probe, top, run.grid.window)
    number, total = 0, run.repeats * len(points)
    for clock, group in groupby(points, key=lambda point: point.clock):
        found: dict[Point, list[Measured]] = {point: [] for point in group}
        arrived = True
        if run.agent is not None and run.writes:
            arrived = await run.agent.set_clock(clock)
            await asyncio.sleep(SETTLE)
        for _ in range(run.repeats):  # in rounds: a host that is slow for a minute slows every load once
            for point, so_far in found.items():
                so_far.append(await _measured(run, point, iteration_guess(point, probe, top), idle))
                number += 1
                told = _noted(run, point, so_far, arrived)
                _say(f"[{number}/{total}] {told}; {_long(Seconds(about * (1.0 - number / total)))} left")


def _noted(run: Run, point: Point, found: Sequence[Measured], arrived: bool) -> str:
    """Write the point down once it was measured as often as asked; what to say of it."""
    usable = _usable(found)
    middle = usable[len(usable) // 2]
    flag = middle.window.flag or ("" if arrived else "clock_not_reached")
    if len(found) == run.repeats:
        error = median_error([measured.window.seconds for measured in usable])
        append(
            run.out,
            run.subject,
            point,
            1000.0 * middle.window.seconds,
            middle.watts,
            latency_se_ms="" if error is None else f"{1000.0 * error:.3g}",
            power_capped=str(int(middle.capped)),
            flag=flag,
        )
    return _described(point, middle.window, middle.watts, flag)


def _usable(found: Sequence[Measured]) -> list[Measured]:
    """Those that can be used, by time; all, if none can."""
    usable = [measured for measured in found if not measured.window.flag] or list(found)
    return sorted(usable, key=lambda measured: measured.window.seconds)


async def _measured(run: Run, point: Point, guess: Seconds, idle: float | None) -> Measured:
    readings: list[Meter] = []

    async def read() -> None:
        if run.agent is not None:
            readings.append(await run.agent.read())

    if point.phase == "prefill":
        await read()
        window = await run.engine.prefill(point.new_tokens, run.grid.window)
        await read()
    else:
        output = output_tokens(point, guess, run.grid.window)
        window = await run.engine.decode(point.batch, point.context - output // 2, output, read, read)
    if len(readings) < 2:
        return Measured(window, None, capped=False)
    before, after = readings
    watts = after.watts_since(before, run.subject.tp)
    if window.busy is not None and idle is not None and watts:
        working = min(1.0, window.busy / (after.at - before.at))
        watts = idle + (watts - idle) / working
    return Measured(window, watts or None, before.capped or after.capped)


async def _idle_watts(agent: Agent) -> float | None:
    before = await agent.read()
    await asyncio.sleep(IDLE_WINDOW)
    return (await agent.read()).watts_since(before, len(agent.infos)) or None


async def _probe(engine: LiveEngine) -> Probe:
    """One sequence as the engine stands: what the estimate of time is made of."""

    async def nothing() -> None:
        return

    decoding = await engine.decode(1, 16, PROBE_OUTPUT, nothing, nothing)
    if decoding.flag:
        raise UserError(f"the engine cannot be timed: {decoding.flag}", "does it stream token by token?")
    prompt = await engine.prefill(PROBE_PROMPT, Seconds(0.0))
    return Probe(decoding.seconds, Seconds(max(0.0, prompt.seconds - decoding.seconds) / PROBE_PROMPT))


async def _ladder(agent: Agent | None, writes: bool, count: int) -> tuple[MegaHertz, ...]:
    if agent is None:
        return (ONE_SPEED,)
    if not writes:
        return (await agent.clock_now(),)
    if not agent.clocks:
        raise UserError("the agent allows no clock of these GPUs", "clocks.min_mhz and max_mhz in agent.yaml")
    return spread(agent.clocks, count)


async def _fitted(url: str, key: str | None, grid: Grid) -> tuple[str, Grid]:
    """(model it serves, the grid without what it cannot hold)."""
    status, body = await fetch(url, "/v1/models", key)
    try:
        card = orjson.loads(body)["data"][0]
        model, limit = str(card["id"]), int(card.get("max_model_len") or NO_LIMIT)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"{url}/v1/models: {status}, no model in it", "--url takes an engine, not an agent"
        ) from error
    _, metrics = await fetch(url, "/metrics", key)
    blocks = BLOCKS.search(metrics)
    fitted = Grid(
        grid.batches,
        tuple(context for context in grid.contexts if 1.5 * context < limit),
        tuple(prompt for prompt in grid.prompts if prompt + 1 < limit),
        grid.window,
        int(blocks[1]) * int(blocks[2]) if blocks else None,
    )
    return model, fitted


async def _stack_of(url: str, key: str | None) -> str:
    status, body = await fetch(url, "/version", key)
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return f"vLLM {orjson.loads(body)['version']}" if status == 200 else "unknown"
    return "unknown"


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(",") if part)
    except ValueError as error:
        raise UserError(f"{text!r}: expected whole numbers, comma separated") from error
    if any(number < 1 for number in numbers):
        raise UserError(f"{text!r}: every number must be at least 1")
    return numbers


def _described(point: Point, window: Window, watts: float | None, flag: str) -> str:
    load = (
        f"prompt {point.new_tokens}" if point.phase == "prefill" else f"batch {point.batch} x {point.context}"
    )
    speed = f" at {point.clock} MHz" if point.clock != ONE_SPEED else ""
    if flag:
        return f"{load}{speed}: not usable ({flag})"
    power = "" if watts is None else f", {watts:.0f} W"
    return f"{load}{speed}: {1000.0 * window.seconds:.2f} ms{power}"


def _text(curves: Sequence[LoadCurve]) -> str:
    if not curves:
        return "no load was measured with power at more than one clock: no curve of energy against slowdown\n"
    lines = ["load                    best MHz  J/token  saved   slowdown   (against the highest clock)"]
    for curve in curves:
        load = f"prompt {curve.new_tokens}" if curve.new_tokens else f"batch {curve.batch} x {curve.context}"
        best = curve.best
        lines.append(
            f"{load:<22}  {best.clock:>8}  {best.joules_per_token:>7.3f}  {100 * curve.saving_ratio:>4.0f} %"
            f"  x {best.slowdown:.2f}"
        )
    return "\n".join(lines) + "\n"


def _long(seconds: Seconds) -> str:
    return f"{seconds:.0f} s" if seconds < 100.0 else f"{seconds / 60.0:.0f} min"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
