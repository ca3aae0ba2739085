"""Shell: `joulegate replay`: one trace, one target, one report."""

import asyncio
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
import uvloop

from joulegate.addresses import key_of
from joulegate.arrivals import Arrival, read_trace
from joulegate.domain import Cuts, Objectives
from joulegate.errors import UserError
from joulegate.settings.load import read_secret
from joulegate.units import Seconds
from simulator.loadgen import Sender, Target, finish, play
from simulator.loadgen_http import fetch
from simulator.real_time import go_first
from simulator.replay_report import Engine, summary
from simulator.window import Window

PATIENCE = 60.0  # seconds without a byte from the target after which what is missing counts as lost
SAY_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class Replay:
    trace: Path
    url: str
    engine: Engine
    model: str | None
    api_key_file: Path | None
    window: Window
    objectives: Objectives


def objectives(ttft_ms: tuple[float, float, float], tpot_ms: float) -> Objectives:
    short, medium, long = (Seconds(ms / 1e3) for ms in ttft_ms)
    return Objectives((short, medium, long), Seconds(tpot_ms / 1e3), None, None)


def replay(request: Replay, say: Callable[[str], None]) -> dict[str, object]:
    """Send the trace; `say` gets progress. Raises UserError for a bad trace or a target that is not there."""
    arrivals = request.window.cut(read_trace(request.trace))
    if not arrivals:
        raise UserError("no request of the trace is in that window", "look at --from and --duration")
    _allow_many_sockets()
    go_first()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_replay(request, arrivals, say))


async def _replay(
    request: Replay, arrivals: tuple[Arrival, ...], say: Callable[[str], None]
) -> dict[str, object]:
    key = _api_key(request.api_key_file)
    model = request.model or await _first_model(request.url, key)
    sender = Sender(Target(request.url, model, request.engine, key))
    say(f"replay: {len(arrivals)} requests over {arrivals[-1].at:.0f} s to {request.url}, model {model}")
    said = 0.0

    def progress(elapsed: float) -> None:
        nonlocal said
        if elapsed >= said + SAY_EVERY:
            said = elapsed
            tally = sender.tally
            say(
                f"replay: {elapsed:.0f} s, {tally.sent} sent, {sender.in_flight} in flight, "
                f"{tally.errors} errors"
            )

    lateness = await play(arrivals, [sender], progress)
    said = 0.0
    await finish([sender], PATIENCE, progress)
    result = summary(sender.tally, request.objectives, Cuts())
    return result | {
        "lateness_ms_p99": 1e3 * lateness.quantile(0.99),
        "lateness_ms_max": 1e3 * lateness.largest,
        "speed": request.window.speed,
        "duration_s": arrivals[-1].at,
        "model": model,
        "lengths": LENGTHS[request.engine],
    }


LENGTHS = {
    Engine.EMULATED: "true output lengths in a header that only emulated engines read",
    Engine.VLLM: (
        "output lengths forced by min_tokens, max_tokens and ignore_eos: "
        "set predictor.use_max_tokens: false in the gateway, or it is told the true length"
    ),
}


def as_text(result: dict[str, object]) -> str:
    """The report for a person."""
    lines = [
        f"requests {result['requests']}, errors {result['errors']}, lost {result['lost']}, "
        f"doubled {result['doubled']}, usage mismatches {result['usage_mismatches']}",
        *(f"errors  {kind}: {count:.0f}" for kind, count in _mapping(result["error_kinds"])),
        f"output tokens {result['output_tokens']}; {result['lengths']}",
    ]
    for label, name in (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("ITL", "itl_s"), ("E2E", "e2e_s")):
        lines.append(f"{label:<5}" + "  ".join(f"{k} {_seconds(v)}" for k, v in _mapping(result[name])))
    shares = "  ".join(
        f"{k} {'-' if v is None else f'{v:.1f} %'}" for k, v in _mapping(result["attainment_pct"])
    )
    lines.append(f"attainment  {shares}")
    lines.append(f"sent late by {result['lateness_ms_p99']:.1f} ms at p99")
    return "\n".join(lines)


def _mapping(value: object) -> list[tuple[str, float | None]]:
    assert isinstance(value, dict)
    return list(value.items())


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1e3 * value:.1f} ms" if value < 1 else f"{value:.2f} s"


def _api_key(file: Path | None) -> str | None:
    return key_of(read_secret(None, file) or os.environ.get("OPENAI_API_KEY"))


async def _first_model(url: str, key: str | None) -> str:
    status, body = await fetch(url, "/v1/models", key)
    try:
        if status == 200:
            return str(orjson.loads(body)["data"][0]["id"])
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{url}/v1/models names no model", "give --model") from error
    hint = "give --api-key-file or set OPENAI_API_KEY" if status == 401 else "give --model"
    raise UserError(f"{url}/v1/models answers {status}", hint)


def _allow_many_sockets() -> None:
    """As many requests may be in flight as the operating system lets us have sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
