"""From settings to a fleet: the engine's model from a profile, from a trained file, or from nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

from joulegate.engine_profile import parse_profile
from joulegate.errors import UserError
from joulegate.settings.gateway import Gateway
from joulegate.shipped import shipped
from predictor.latency_artifact import save
from predictor.latency_train import train
from predictor.physics import PhysicsModel
from predictor.sweep_emulated import Blur, emulated_sweep
from predictor.table import TableModel
from router.build_fleet import build_fleet, read_model
from router.engine_metrics import Gauges

PROFILE = "profiles/h100_llama-3.1-8b_tp1.json"


def settings(**instance: object) -> Gateway:
    one = {"name": "a", "url": "http://127.0.0.1:1", **instance}
    models = [{"name": "m", "aliases": ["n"], "pools": [{"name": "all", "instances": [one]}]}]
    return Gateway.model_validate({"version": 1, "models": models})


def test_a_profile_gives_model_and_limits() -> None:
    fleet = build_fleet(settings(profile=str(shipped(PROFILE))))
    [(_, _, member)] = fleet.members()
    assert isinstance(member.law.model, PhysicsModel)
    assert (member.law.slots, member.law.limits.kv_capacity) == (256, 440_000)
    assert fleet.models["n"] is fleet.models["m"]


def test_settings_go_before_the_profile() -> None:
    fleet = build_fleet(settings(profile=str(shipped(PROFILE)), slots=8, chunk_tokens=512))
    [(_, _, member)] = fleet.members()
    assert (member.law.slots, member.law.limits.chunk_budget) == (8, 512)


def test_without_a_profile_there_is_no_model_yet() -> None:
    [(_, _, member)] = build_fleet(settings()).members()
    assert member.law.model is None
    assert not member.speed.profiled


def test_a_file_that_is_neither_says_which_key_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text('{"format": "engine-profile/1", "name": "x"}')
    with pytest.raises(UserError, match="validated_clock_range_mhz"):
        read_model(path)
    path.write_text("[]")
    with pytest.raises(UserError, match="engine profile"):
        read_model(path)


def test_a_trained_model_serves_as_a_profile_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    profile = parse_profile(json.loads(shipped(PROFILE).read_text()))
    fitted = train(emulated_sweep(profile, 120, rng, Blur(clocks=4)), profile.clocks[::20], rng)
    save(tmp_path / "m.json", [fitted.model], "0" * 64)
    [(_, _, member)] = build_fleet(settings(profile=str(tmp_path / "m.json"))).members()
    assert isinstance(member.law.model, TableModel)
    assert member.speed.profiled


def test_an_engine_that_was_started_again_has_forgotten_its_sessions_and_may_hold_less() -> None:
    [(_, _, member)] = build_fleet(settings()).members()
    member.follow(Gauges(kv_capacity_tokens=1000, started=1.0))
    member.remember("s", 50)
    member.follow(Gauges())
    assert (member.law.limits.kv_capacity, dict(member.law.sessions)) == (1000, {"s": 50})
    member.follow(Gauges(kv_capacity_tokens=600, started=2.0))
    assert (member.law.limits.kv_capacity, dict(member.law.sessions)) == (600, {})


def test_the_laws_are_told_how_many_tokens_a_step_gives() -> None:
    [(_, _, member)] = build_fleet(settings()).members()
    member.follow(Gauges(generated=3000.0))
    assert member.law.tokens_per_step == 1.0
    member.follow(Gauges(generated=6000.0, accepted=4000.0))
    assert member.law.tokens_per_step == 3.0


def test_what_the_settings_say_of_its_cache_stands() -> None:
    [(_, _, member)] = build_fleet(settings(kv_tokens=800)).members()
    member.follow(Gauges(kv_capacity_tokens=600, started=1.0))
    assert member.law.limits.kv_capacity == 800
