"""What the laws project of a batch in flight, against the engine that then runs it to its end."""

import json
import random
from pathlib import Path

import pytest

from benchmarks.projection import misjudged, taken, to_the_end
from control.projection import Load, Pace, drain, peak_kv
from control.state import Flight, LoadBook
from joulegate.domain import RequestType, Size
from joulegate.engine_profile import parse_profile
from joulegate.units import Seconds
from simulator.costs import EngineCosts
from simulator.engine import Engine
from simulator.jobs import Job

PROFILE = Path(__file__).parents[2] / "configs" / "profiles" / "h100_llama-3.1-8b_tp1.json"
COSTS = EngineCosts(parse_profile(json.loads(PROFILE.read_text())))
BEGUN = 3.0  # seconds until the projection is made


def started(seed: int, count: int = 60) -> tuple[Engine, LoadBook]:
    """An engine in the middle of its work, and the scoreboard of it; lengths are known."""
    draw = random.Random(seed)
    engine, book = Engine(COSTS, COSTS.profile.max_clock), LoadBook()
    jobs = [Job(n, draw.randrange(20, 2000), draw.randrange(20, 900)) for n in range(count)]
    for job in jobs:
        engine.submit(job, 0.0)
    engine.advance(BEGUN)
    for job in jobs:
        if job.finished_at == job.finished_at:
            continue
        flight = _flight(job)
        book.send(flight, Seconds(0.0))
        book.progress(flight, engine.generated(job), Seconds(BEGUN))
    return engine, book


def _flight(job: Job) -> Flight:
    length = float(job.output_tokens)
    return Flight(
        id=str(job.key),
        type=RequestType(Size.M, Size.M),
        input_tokens=job.prompt_tokens,
        uncached_tokens=job.prompt_tokens,
        output_q50=length,
        output_q90=length,
        arrived=Seconds(0.0),
        ttft=Seconds(9.0),
        tpot=Seconds(1.0),
    )


@pytest.mark.parametrize("seed", range(5))
def test_batch_kv_and_end_are_those_of_the_engine(seed: int) -> None:
    """Better than throttLL'eM's own projection, which is 0.19 % off in batch and 2.26 % in KV."""
    engine, book = started(seed)
    assert len(book.flights) > 30
    peak = peak_kv(book)
    exact, coarse = drain(book, segments=len(book.flights)), drain(book)
    pace = Pace(COSTS.model, Load(book.decoding, book.context, 0, 2048), COSTS.model.clocks[-1])
    seconds = [taken(stretches, pace) for stretches in (exact, coarse)]
    began, held = engine.now, engine.kv_tokens
    truth = list(to_the_end(engine))
    wrong, batch = misjudged(exact, [decoding for decoding, _ in truth])
    assert wrong <= 0.0019 * batch
    assert peak == pytest.approx(max(held, *(kv for _, kv in truth)), rel=0.0226)
    assert seconds[0] == pytest.approx(engine.now - began, rel=0.01)
    assert seconds[1] == pytest.approx(engine.now - began, rel=0.1)
    assert seconds[1] >= seconds[0]  # in few stretches the batch is over-stated, never under-stated
