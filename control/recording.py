"""Pure: everything that enters the laws of one model and what they decided, as lines to be played again.

Theory of operation. The laws are deterministic, so a decision can be explained, or checked after a change, if
all they were told is known: `RecordedSteering` and `RecordedBook` take the places of `Steering` and
`LoadBook` and write a line for each call. What the shell sets between two calls (health, gauges, corrections,
what left the queue) is noted with the next one, where it has changed; so are the numbers drawn.
`control.playback` reads the lines. Nothing is recorded that came from a client but the names of tenants and
sessions. Instances that join or leave are not recorded: those of a gateway stay.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TypeVar

import orjson

from control.admission import AdmissionRules, Outcome
from control.governor import Decision, GovernorRules
from control.model_wire import plain
from control.pick import Rng
from control.state import Flight, Instance, LoadBook, PoolRules
from control.steering import Steering
from joulegate.domain import EngineModel
from joulegate.units import Seconds

FLIGHT = (
    "id",
    "input_tokens",
    "uncached_tokens",
    "output_q50",
    "output_q90",
    "arrived",
    "ttft",
    "tpot",
    "e2e",
    "max_tokens",
    "tenant",
    "session",
    "avoid",
)  # fields that a request has when it arrives; its type beside them
FACTS = (
    "pool",
    "ready",
    "suspect",
    "unseen",
    "limited",
    "gauges",
    "peer_prompts",
    "slots",
    "tokens_per_step",
    "limits",
    "correction",
    "bands",
    "model_error",
    "clock",
    "switch",
    "telemetry_at",
)  # fields of an instance that the shell sets
Answer = TypeVar("Answer")


class Recorder:
    """Lines about one model. `write` takes each with its end of line; it must not raise."""

    def __init__(self, model: str, write: Callable[[bytes], None]) -> None:
        self._model = model
        self._write = write

    def line(self, fields: Mapping[str, object]) -> None:
        options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
        self._write(orjson.dumps({"of": self._model, **fields}, default=plain, option=options))


class RecordedBook(LoadBook):
    """The scoreboard of the instance `name`."""

    __slots__ = ("_name", "_recorder")

    def __init__(self, name: str, recorder: Recorder) -> None:
        super().__init__()
        self._name = name
        self._recorder = recorder

    def progress(self, flight: Flight, tokens: float, now: Seconds) -> None:
        self._recorder.line({"progress": (self._name, flight.id, tokens, now)})
        super().progress(flight, tokens, now)

    def close(self, flight: Flight) -> None:
        self._recorder.line({"close": (self._name, flight.id)})
        super().close(flight)


class RecordedSteering(Steering):
    """Decides as `Steering` does. Its instances keep `RecordedBook`s of the same recorder."""

    def __init__(
        self,
        recorder: Recorder,
        pools: Sequence[PoolRules],
        instances: Sequence[Instance],
        admission: AdmissionRules,
        governor: GovernorRules,
        rng: Rng,
    ) -> None:
        self._recorder = recorder
        self._draws: list[int] = []
        self._deciding = False
        self._told: dict[str, tuple[object, ...]] = {}  # FACTS by instance
        self._models: dict[str, EngineModel | None] = {}
        self._queued: dict[str, str] = {}  # flight -> pool, after the last call
        super().__init__(pools, instances, admission, governor, partial(self._drawn, rng))
        begin = {
            "pools": [rules_out(rules) for rules in pools],
            "instances": [(instance.name, instance.tp) for instance in instances],
            "admission": asdict(admission),
            "governor": asdict(governor),
        }
        recorder.line({"begin": begin, **self._news([])})

    def relabel(self, rules: Sequence[PoolRules]) -> None:
        self._recorder.line({"relabel": [rules_out(each) for each in rules], **self._news([])})
        super().relabel(rules)

    def arrive(self, flight: Flight, pool: str, now: Seconds) -> Outcome:
        asked = {"arrive": (flight_out(flight), pool), "now": now}
        return self._noted(asked, partial(super().arrive, flight, pool, now), outcome_out, flight)

    def send(self, flight: Flight, pool: str, instance: Instance, now: Seconds) -> Outcome:
        asked = {"send": (flight_out(flight), pool, instance.name), "now": now}
        return self._noted(asked, partial(super().send, flight, pool, instance, now), outcome_out)

    def assign(self, now: Seconds) -> Outcome:
        return self._noted({"assign": None, "now": now}, partial(super().assign, now), outcome_out)

    def tick(self, instance: Instance, now: Seconds) -> Decision:
        asked = {"tick": instance.name, "now": now}
        return self._noted(asked, partial(super().tick, instance, now), decision_out)

    def _noted(
        self,
        asked: Mapping[str, object],
        decide: Callable[[], Answer],
        out: Callable[[Answer], object],
        *arriving: Flight,
    ) -> Answer:
        """Decide, and write down what was known and what came of it."""
        if self._deciding:  # one call of ours within another
            return decide()
        news = self._news(arriving)
        self._draws.clear()
        self._deciding = True
        try:
            answer = decide()
        finally:
            self._deciding = False
        self._recorder.line({**asked, **news, "draws": self._draws, "answer": out(answer)})
        self._queued = {flight.id: pool for pool, flight in self._waiting()}
        return answer

    def _drawn(self, rng: Rng, below: int) -> int:
        number = rng(below)
        self._draws.append(number)
        return number

    def _waiting(self) -> list[tuple[str, Flight]]:
        """Who waits in which pool, in the order in which they were queued."""
        entries = [(entry, pool) for pool, queue in self.queues.items() for entry in queue.waiting]
        return [(pool, entry[2]) for entry, pool in sorted(entries, key=lambda each: each[0][1])]

    def _news(self, arriving: Sequence[Flight]) -> Mapping[str, object]:
        """What has changed since the last line, and which sessions are cached of those that matter now."""
        news: dict[str, object] = {"share": self.share}
        facts, models = {}, {}
        for name, steered in self.steered.items():
            instance = steered.instance
            if (seen := tuple(getattr(instance, field) for field in FACTS)) != self._told.get(name):
                facts[name] = self._told[name] = seen
            if name not in self._models or self._models[name] is not instance.model:
                models[name] = self._models[name] = instance.model
        waiting = self._waiting()
        now_queued = {flight.id: pool for pool, flight in waiting}
        moved = [(each, None) for each in self._queued if each not in now_queued]
        news |= {"facts": facts, "models": models, "sessions": self._sessions(waiting, arriving)}
        changed = [(name, pool) for name, pool in now_queued.items() if self._queued.get(name) != pool]
        self._queued = now_queued
        return {**news, "moved": [*moved, *changed]}

    def _sessions(
        self, waiting: Sequence[tuple[str, Flight]], arriving: Sequence[Flight]
    ) -> dict[str, dict[str, int]]:
        """Tokens cached of the sessions of those who wait or arrive, by instance."""
        wanted = {flight.session for flight in (*arriving, *(each for _, each in waiting)) if flight.session}
        caches = {name: steered.instance.sessions for name, steered in self.steered.items()}
        return {
            name: {session: cache[session] for session in wanted if session in cache}
            for name, cache in caches.items()
        }


def rules_out(rules: PoolRules) -> Mapping[str, object]:
    types = sorted(kind.name for kind in rules.types)
    return {"name": rules.name, "objectives": rules.objectives, "types": types, "shed": rules.shed}


def flight_out(flight: Flight) -> Mapping[str, object]:
    return {"type": flight.type.name, **{field: getattr(flight, field) for field in FLIGHT}}


def outcome_out(outcome: Outcome) -> Mapping[str, object]:
    """Who was granted what and who was refused; everybody else waits."""
    return {
        "grants": [(grant.flight.id, grant.instance.name, grant.reason) for grant in outcome.grants],
        "rejects": [(each.flight.id, each.reason, each.retry_after) for each in outcome.rejects],
    }


def decision_out(decision: Decision) -> Mapping[str, object]:
    """The clock, why, and the headroom that goes with it."""
    return {
        "clock": decision.clock,
        "reason": decision.reason.value,
        "tpot": decision.tpot,
        "at_clock": decision.at_clock,
        "at_max": decision.at_max,
    }
