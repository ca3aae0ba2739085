"""An instance's speed as learned from windows of traffic, against an engine unlike its profile."""

import json

import pytest

from control.state import Flight, Instance, Limits, LoadBook
from joulegate.domain import Batch, EngineModel, RequestType, Size
from joulegate.engine_profile import parse_profile
from joulegate.shipped import shipped
from joulegate.units import MegaHertz, Seconds
from predictor.online_drift import Drift
from predictor.physics import PhysicsModel
from router.speed import Speed

WINDOW = 0.25
TRUTH = PhysicsModel(parse_profile(json.loads(shipped("profiles/h100_llama-3.1-8b_tp1.json").read_text())))
TOP = TRUTH.clocks[-1]


class Rig:
    """An engine that runs `slower` times as long as TRUTH says, watched through windows."""

    def __init__(self, model: EngineModel | None, slower: float = 1.0) -> None:
        self.law = Instance("i", "p", LoadBook(), Limits(), model)
        self.law.telemetry_at = Seconds(0.0)
        self.speed = Speed(model)
        self.slower = slower
        self.now = 1.0

    def load(self, decoding: int, context: int) -> None:
        self.law.book = LoadBook()
        for i in range(decoding):
            kind = RequestType(Size.S, Size.S)
            flight = Flight(
                str(i), kind, context, context, 50.0, 90.0, Seconds(0.0), Seconds(1.0), Seconds(1.0)
            )
            self.law.book.send(flight, Seconds(0.0))
            self.law.book.progress(flight, 1.0, Seconds(0.0))

    def windows(self, count: int, prompts: tuple[int, ...] = ()) -> None:
        for _ in range(count):
            self.speed.tick(self.law, Seconds(self.now))
            clock = self.law.clock or TOP
            batch = Batch(self.law.book.decoding, self.law.book.context)
            step = self._mean_step(batch, prompts, clock)
            events = int(WINDOW / step) * batch.decoding
            window = self.speed.window
            window.events, window.gaps = events, events * step
            window.prompts.extend(prompts)
            window.joules = TRUTH.watts(batch, clock) * WINDOW
            self.now += WINDOW

    def _mean_step(self, batch: Batch, prompts: tuple[int, ...], clock: MegaHertz) -> float:
        """With `prompts` prefilled in the window, one an iteration."""
        plain = TRUTH.iteration_time(batch, clock)
        mixed = [Batch(batch.decoding, batch.context_tokens, n, 0.5 * n * n) for n in prompts]
        extra = sum(TRUTH.iteration_time(each, clock) - plain for each in mixed) * self.slower
        iterations = (WINDOW - extra) / (plain * self.slower)
        return WINDOW / iterations


@pytest.mark.parametrize("slower", [0.85, 1.0, 1.2])
@pytest.mark.parametrize("prompts", [(), (300, 1500)])
def test_a_profiled_engine_that_is_slower_than_its_profile_is_followed(
    slower: float, prompts: tuple[int, ...]
) -> None:
    rig = Rig(TRUTH, slower)
    rig.load(16, 500)
    rig.windows(240, prompts)  # a minute
    assert rig.law.correction == pytest.approx(slower, rel=0.03)


def test_a_lasting_change_is_noticed_as_drift() -> None:
    rig = Rig(TRUTH)
    rig.load(16, 500)
    rig.windows(100)
    seen = [rig.speed.drifting]
    rig.slower = 1.3
    rig.windows(240)
    seen.append(rig.speed.drifting)
    assert seen == [Drift.NONE, Drift.SLOWER]


def test_a_window_in_which_the_clock_changed_teaches_nothing() -> None:
    rig = Rig(TRUTH, slower=1.4)
    rig.load(16, 500)
    for clock in (MegaHertz(1410), MegaHertz(1980)) * 40:
        rig.windows(1)
        rig.law.clock = clock
    assert rig.law.correction == 1.0


def test_what_is_learned_at_low_clocks_is_kept_for_low_clocks() -> None:
    rig = Rig(TRUTH)
    rig.load(16, 500)
    low = TRUTH.clocks[0]
    for _ in range(12):
        rig.law.clock, rig.slower = low, 1.3
        rig.windows(16)
        rig.law.clock, rig.slower = TOP, 1.0
        rig.windows(16)
    assert rig.law.factor(TOP) == pytest.approx(1.0, abs=0.08)
    assert rig.law.factor(low) > rig.law.factor(TOP) + 0.1
    assert rig.law.factor(TOP) == rig.law.correction, "it is at its highest clock"


def test_steady_traffic_of_one_kind_is_enough_to_learn_from() -> None:
    rig = Rig(None)
    rig.speed.knows_clocks(TRUTH.clocks)
    rig.load(8, 400)
    rig.windows(30)
    assert rig.law.model is None, "ten seconds of traffic first"
    rig.windows(30)
    assert rig.law.model is not None
    batch = Batch(8, 8 * 400.0)
    assert rig.law.model.iteration_time(batch, TOP) == pytest.approx(
        TRUTH.iteration_time(batch, TOP), rel=0.05
    )


def test_without_a_profile_nothing_is_known_until_enough_was_seen_then_a_model_is_learned() -> None:
    rig = Rig(None)
    rig.load(8, 400)
    rig.windows(20)
    assert rig.law.model is None, "no clocks known yet: nothing to learn with"
    rig.speed.knows_clocks(TRUTH.clocks)
    for decoding in (1, 2, 4, 8, 16, 32):
        rig.load(decoding, 400)
        rig.windows(30)
    model = rig.law.model
    assert model is not None
    batch = Batch(16, 16 * 400.0)
    assert model.iteration_time(batch, TOP) == pytest.approx(TRUTH.iteration_time(batch, TOP), rel=0.05)
    low = MegaHertz(1005)
    assert model.iteration_time(batch, low) >= TRUTH.iteration_time(batch, low), (
        "never seen: never optimistic"
    )
