"""Plain routing over many instances: the heap says what a walk over all of them says."""

import json
from pathlib import Path

import numpy as np
import pytest

from joulegate.engine_profile import parse_profile
from simulator.costs import EngineCosts
from simulator.jobs import Job
from simulator.least_loaded import SEQUENCE_TOKENS, LeastLoaded
from simulator.station import Station

PROFILES = Path(__file__).parents[2] / "configs" / "profiles"


class Walked:
    """The same rule, every engine moved and asked at every arrival."""

    def __init__(self, stations: list[Station]) -> None:
        self.stations = stations
        self.queued = [0] * len(stations)

    def send(self, job: Job, at: float) -> None:
        for n, station in enumerate(self.stations):
            self.queued[n] -= sum(one.prompt_tokens for one in station.engine.advance(at).first_tokens)
        loads = [
            (s.engine.running + s.engine.waiting + queued / SEQUENCE_TOKENS) / s.profile.tp
            for s, queued in zip(self.stations, self.queued, strict=True)
        ]
        n = loads.index(min(loads))
        self.queued[n] += job.prompt_tokens
        self.stations[n].engine.submit(job, at)


def stations(count: int) -> list[Station]:
    made = [
        EngineCosts(parse_profile(json.loads((PROFILES / f"{name}.json").read_text())))
        for name in ("h100_llama-3.1-70b_tp2", "h100_llama-3.1-70b_tp4")
    ]
    return [Station(str(n), "all", made[n % 2], 0.0) for n in range(count)]


def jobs(count: int, seed: int) -> list[Job]:
    draw = np.random.default_rng(seed)
    return [Job(n, int(draw.integers(1, 3000)), int(draw.integers(1, 200))) for n in range(count)]


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_request_goes_where_a_walk_over_all_would_send_it(count: int, seed: int) -> None:
    times = np.cumsum(np.random.default_rng(seed).exponential(0.2 / count, 400)).tolist()
    ended: list[Job] = []
    fleet, walked = LeastLoaded(stations(count), ended.append), Walked(stations(count))
    mine, others = jobs(400, seed), jobs(400, seed)
    for job, other, at in zip(mine, others, times, strict=True):
        fleet.hear(at)
        fleet.send(job, at)
        walked.send(other, at)
    fleet.advance(times[-1] + 1e4)
    for station in walked.stations:
        station.engine.advance(times[-1] + 1e4)
    assert sorted(job.key for job in ended) == list(range(len(mine))), "everybody ended, and was told of once"
    assert [job.finished_at for job in mine] == pytest.approx([job.finished_at for job in others], abs=1e-6)
