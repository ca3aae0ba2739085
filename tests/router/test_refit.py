"""An engine that drifts is learned anew by a real child process, and its model swapped in."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from control.state import Flight
from joulegate.domain import Batch, RequestType, Size
from joulegate.engine_profile import parse_profile
from joulegate.settings.gateway import Gateway
from joulegate.shipped import shipped
from joulegate.units import Seconds
from predictor.online_drift import DriftSettings
from predictor.physics import PhysicsModel
from predictor.table import TableModel
from router.build_fleet import build_fleet
from router.pools import Fleet, Member
from router.refit import Refitter

PROFILE = shipped("profiles/h100_llama-3.1-8b_tp1.json")
TRUTH = PhysicsModel(parse_profile(json.loads(PROFILE.read_text())))
TOP = TRUTH.clocks[-1]
RULES = DriftSettings(refit_interval=Seconds(60.0))
WINDOW = 0.25
SLOWER = 1.3


def fleet_of_one(profile: Path = PROFILE, **predictor: str) -> tuple[Fleet, Member]:
    instance = {"name": "a", "url": "http://127.0.0.1:1", "profile": str(profile)}
    models = [{"name": "m", "pools": [{"name": "all", "instances": [instance]}]}]
    fleet = build_fleet(Gateway.model_validate({"version": 1, "models": models, "predictor": predictor}))
    [(_, _, member)] = fleet.members()
    member.law.telemetry_at = Seconds(0.0)
    return fleet, member


def load(member: Member, decoding: int, context: int) -> None:
    book = member.law.book
    for flight in list(book.flights.values()):
        book.close(flight)
    kind = RequestType(Size.S, Size.S)
    for i in range(decoding):
        flight = Flight(str(i), kind, context, context, 50.0, 90.0, Seconds(0.0), Seconds(1.0), Seconds(1.0))
        book.send(flight, Seconds(0.0))
        book.progress(flight, 1.0, Seconds(0.0))


def drive(member: Member, slower: float) -> float:
    """Three minutes of windows of every load there is at an engine so much slower than its profile."""
    now = 1.0
    for step in range(720):
        if step % 10 == 0:
            load(member, 1 << step // 10 % 6, 200 << step // 60 % 4)
            clocks = TRUTH.clocks[::-20]
            member.law.clock = clocks[step // 10 % len(clocks)]
        member.speed.tick(member.law, Seconds(now))
        clock, batch = member.law.clock or TOP, Batch(member.law.book.decoding, member.law.book.context)
        step_s = slower * TRUTH.iteration_time(batch, clock)
        window = member.speed.window
        window.events = int(WINDOW / step_s) * batch.decoding
        window.gaps = window.events * step_s
        window.joules = TRUTH.watts(batch, clock) * WINDOW
        now += WINDOW
    return now


async def test_a_drifting_engine_is_learned_anew_and_its_correction_starts_over(tmp_path: Path) -> None:
    fleet, member = fleet_of_one(models_dir=str(tmp_path / "models"))
    now = drive(member, SLOWER)
    assert member.speed.drifting.value == "slower"
    assert member.law.correction == pytest.approx(SLOWER, rel=0.05)
    refitter = Refitter(fleet, RULES, lambda: now)
    await refitter.look()
    assert member.speed.refits.problem == ""
    assert (member.speed.refits.done, member.speed.refits.failed) == (1, 0)
    assert isinstance(member.law.model, TableModel)
    assert member.speed.drifting.value == "none"
    assert member.speed.correction is not None
    assert member.speed.correction.factor(TOP) == 1.0
    batch = Batch(16, 16 * 500.0)
    assert member.law.model.clocks == TRUTH.clocks
    for clock in (TOP, TRUTH.clocks[len(TRUTH.clocks) // 2]):
        truth = SLOWER * TRUTH.iteration_time(batch, clock)
        assert member.law.model.iteration_time(batch, clock) == pytest.approx(truth, rel=0.05)
        assert member.law.model.watts(batch, clock) == pytest.approx(TRUTH.watts(batch, clock), rel=0.1)
    await refitter.look()
    assert member.speed.refits.done == 1, "all is well now"

    _, again = fleet_of_one(models_dir=str(tmp_path / "models"))
    assert again.speed.refits.restored, "after a restart it is there"
    assert again.law.model is not None
    assert again.law.model.iteration_time(batch, TOP) == member.law.model.iteration_time(batch, TOP)
    other = tmp_path / "other.json"
    other.write_text(PROFILE.read_text() + "\n")
    _, changed = fleet_of_one(other, models_dir=str(tmp_path / "models"))
    assert isinstance(changed.law.model, PhysicsModel), "another profile is another engine"
    (kept,) = (tmp_path / "models").iterdir()
    kept.write_bytes(b"PK, and then nothing")
    _, damaged = fleet_of_one(models_dir=str(tmp_path / "models"))
    assert isinstance(damaged.law.model, PhysicsModel)


async def test_an_engine_as_it_was_learned_is_left_alone() -> None:
    fleet, member = fleet_of_one()
    now = drive(member, 1.0)
    await Refitter(fleet, RULES, lambda: now).look()
    assert (member.speed.refits.done, member.speed.refits.failed) == (0, 0)
    assert isinstance(member.law.model, PhysicsModel)


async def test_a_child_that_fails_leaves_the_model_and_says_why() -> None:
    fleet, member = fleet_of_one()
    now = drive(member, SLOWER)
    before = member.law.correction
    await Refitter(fleet, RULES, lambda: now, child=("sh", "-c", "echo no memory >&2; exit 1")).look()
    assert (member.speed.refits.done, member.speed.refits.failed) == (0, 1)
    assert member.speed.refits.problem == "no memory"
    await Refitter(fleet, RULES, lambda: now + 61.0, child=("true",)).look()
    assert member.speed.refits.failed == 2
    assert "no such file" in member.speed.refits.problem, "it ended well, and wrote nothing"
    assert isinstance(member.law.model, PhysicsModel)
    assert member.law.correction == before


async def test_a_refit_that_is_cancelled_takes_its_child_along(tmp_path: Path) -> None:
    fleet, member = fleet_of_one()
    now = drive(member, SLOWER)
    pid = tmp_path / "pid"
    child = ("sh", "-c", f"echo $$ > {pid}.part; mv {pid}.part {pid}; exec sleep 600")
    task = asyncio.create_task(Refitter(fleet, RULES, lambda: now, child=child).look())
    for _ in range(1000):
        if pid.exists():
            break
        await asyncio.sleep(0.02)
    os.kill(int(pid.read_text()), 0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
