"""A recording, played again, decides the same; laws that differ are found out."""

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import orjson
import pytest

from control.admission import AdmissionRules, Grant
from control.governor import GovernorRules
from control.playback import Step, playback
from control.recording import RecordedBook, RecordedSteering, Recorder
from control.state import Flight, Gauges, Instance, Limits, PoolRules
from joulegate.domain import Objectives, RequestType, Size
from joulegate.engine_profile import parse_profile
from joulegate.shipped import shipped
from joulegate.units import Seconds
from predictor.physics import PhysicsModel

PROFILE = parse_profile(orjson.loads(shipped("profiles/h100_llama-3.1-8b_tp1.json").read_bytes()))
OBJECTIVES = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), Seconds(20.0), 1.2)
SHORT = frozenset(RequestType(size, output) for size in (Size.S, Size.M) for output in Size)
LONG = frozenset(RequestType(Size.L, output) for output in Size)


class Driver:
    """A gateway's day in small: arrivals, streams, news of instances, clients that leave."""

    def __init__(self, seed: int, write: Callable[[bytes], None]) -> None:
        self.dice = random.Random(seed)
        recorder = Recorder("m", write)
        model = PhysicsModel(PROFILE)
        self.instances = [
            Instance(
                name=f"i{n}",
                pool="short" if n < 2 else "long",
                book=RecordedBook(f"i{n}", recorder),
                limits=Limits(PROFILE.engine.max_num_seqs, 2048, PROFILE.engine.kv_capacity_tokens),
                model=model,
                slots=4,
                telemetry_at=Seconds(0.0),
            )
            for n in range(3)
        ]
        pools = [PoolRules("short", OBJECTIVES, SHORT, shed=True), PoolRules("long", OBJECTIVES, LONG)]
        rng = partial(self.dice.randrange)
        self.steering = RecordedSteering(
            recorder, pools, self.instances, AdmissionRules(), GovernorRules(), rng
        )
        self.now = 0.0
        self.flights: list[tuple[Flight, Instance]] = []
        self.serial = 0

    def run(self, steps: int) -> None:
        acts: list[Callable[[], None]] = [self.arrive, self.arrive, self.stream, self.stream, self.tick]
        rare: list[Callable[[], None]] = [self.leave, self.news, self.relabel]
        for step in range(steps):
            self.now += self.dice.expovariate(12.0)
            self.dice.choice(rare if step % 10 == 9 else acts)()

    def arrive(self) -> None:
        self.serial += 1
        size, output = Size(self.dice.randrange(3)), Size(self.dice.randrange(3))
        tokens = (100, 700, 3000)[size]
        flight = Flight(
            id=str(self.serial),
            type=RequestType(size, output),
            input_tokens=tokens,
            uncached_tokens=tokens,
            output_q50=(50.0, 200.0, 500.0)[output],
            output_q90=(90.0, 340.0, 900.0)[output],
            arrived=Seconds(self.now),
            ttft=OBJECTIVES.ttft[size],
            tpot=OBJECTIVES.tpot,
            e2e=OBJECTIVES.e2e,
            tenant=self.dice.choice(("a", "a", "a", "b")),
            session=self.dice.choice(("", "", "s1", "s2")),
        )
        pool = "long" if size is Size.L else "short"
        self.take(self.steering.arrive(flight, pool, Seconds(self.now)).grants)

    def take(self, grants: Iterable[Grant]) -> None:
        for grant in grants:
            self.flights.append((grant.flight, grant.instance))

    def stream(self) -> None:
        if not self.flights:
            return
        flight, instance = self.dice.choice(self.flights)
        instance.book.progress(flight, float(self.dice.randrange(1, 40)), Seconds(self.now))
        if self.dice.random() < 0.4:
            instance.book.close(flight)
            self.flights.remove((flight, instance))
            if flight.session:
                instance.sessions = {**instance.sessions, flight.session: flight.input_tokens}
        self.take(self.steering.assign(Seconds(self.now)).grants)

    def tick(self) -> None:
        for instance in self.instances:
            instance.telemetry_at = Seconds(self.now)
            instance.clock = self.steering.tick(instance, Seconds(self.now)).clock

    def leave(self) -> None:
        """Somebody who waited has gone."""
        for queue in self.steering.queues.values():
            if (head := queue.head()) is not None:
                queue.remove(head)
                return

    def news(self) -> None:
        instance = self.dice.choice(self.instances)
        instance.ready = self.dice.random() < 0.8
        instance.correction = self.dice.uniform(0.9, 1.1)
        instance.gauges = Gauges(instance.book.running, self.dice.randrange(2), Seconds(self.now))
        instance.model = PhysicsModel(replace(PROFILE, name=f"learned {self.now}"))
        self.steering.share = self.dice.choice((1.0, 0.5))

    def relabel(self) -> None:
        self.instances[1].pool = self.dice.choice(("short", "long"))
        self.steering.relabel([state.queue.rules for state in self.steering.pools.values()])


def recorded(seed: int) -> list[bytes]:
    lines: list[bytes] = []
    Driver(seed, lines.append).run(1200)
    return lines


@pytest.mark.parametrize("seed", range(4))
def test_the_same_inputs_give_the_same_decisions_one_by_one(seed: int) -> None:
    lines = recorded(seed)
    steps = list(playback(lines))
    assert [step for step in steps if not step.same] == []
    assert {step.kind for step in steps} == {"arrive", "assign", "tick"}
    answers = [answer_of(step) for step in steps]
    assert any(answer.get("rejects") for answer in answers), "somebody was shed"
    assert any(step.kind == "assign" and answer_of(step)["grants"] for step in steps), "somebody waited"
    assert len({answer["clock"] for answer in answers if "clock" in answer}) > 2


def answer_of(step: Step) -> dict[str, object]:
    assert isinstance(step.recorded, tuple)
    answer: dict[str, object] = step.recorded[0]
    return answer


def test_other_laws_are_found_out() -> None:
    """Not a tautology: what is compared depends on the rules that are played."""
    begin, *lines = recorded(0)
    said = orjson.loads(begin)
    said["begin"]["governor"]["dwell"] = 30.0
    changed = orjson.dumps(said, option=orjson.OPT_APPEND_NEWLINE)
    different = [step for step in playback([changed, *lines]) if not step.same]
    assert different
    assert different[0].kind == "tick"


def test_an_input_that_is_missing_is_found_out() -> None:
    lines = recorded(1)
    first = next(n for n, line in enumerate(lines) if b'"progress"' in line)
    assert any(not step.same for step in playback([*lines[:first], *lines[first + 1 :]]))


def test_a_line_that_was_cut_is_left_out() -> None:
    lines = recorded(2)
    whole = list(playback(lines[:200]))
    assert list(playback([*lines[:200], lines[200][:-5]])) == whole
