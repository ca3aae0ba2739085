"""Pure: a recording played again: the same inputs to the same laws, decision by decision.

`playback` makes fresh laws from the first line about a model and feeds them with every line that follows. For
each decision it says what was decided when it was recorded and what is decided now. From the first difference
on the lines describe a world in which the other was done, so only that one means anything.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from control.admission import AdmissionRules
from control.governor import GovernorRules
from control.model_wire import model_in, tupled
from control.recording import FACTS, decision_out, outcome_out
from control.state import Bands, Flight, Gauges, Instance, Limits, LoadBook, PeerPrompts, PoolRules
from control.steering import Steering
from joulegate.domain import Objectives, RequestType, Size
from joulegate.units import Seconds

Json = Mapping[str, Any]
NEVER = Seconds(float("inf"))  # JSON has no infinity: a deadline that was one comes back as null


@dataclass(frozen=True, slots=True)
class Step:
    """One decision, then and now."""

    line: int  # of the recording, from 1
    kind: str  # arrive, send, assign or tick
    recorded: object
    played: object

    @property
    def same(self) -> bool:
        return self.recorded == self.played


def playback(lines: Iterable[bytes]) -> Iterator[Step]:
    """Raises ValueError, KeyError or TypeError for what is no recording. A cut last line is left out."""
    players: dict[str, _Player] = {}
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            return
        said = orjson.loads(line)
        if "begin" in said:
            players[said["of"]] = _Player(said)
            continue
        answer = players[said["of"]].play(said)
        if answer is not None:
            yield Step(number, answer[0], (said["answer"], len(said["draws"])), answer[1:])


class _Player:
    """The laws of one model, fed with lines."""

    def __init__(self, said: Json) -> None:
        begin = said["begin"]
        self._draws: deque[int] = deque()
        self._drawn = 0
        self._flights: dict[str, Flight] = {}
        self._instances = {name: _bare(name, tp) for name, tp in begin["instances"]}
        self._tell(said)
        self._steering = Steering(
            [_rules(rules) for rules in begin["pools"]],
            list(self._instances.values()),
            AdmissionRules(**begin["admission"]),
            GovernorRules(**begin["governor"]),
            self._draw,
        )
        self._decide: Mapping[str, Callable[[Json, Seconds], object]] = {
            "arrive": self._arrive,
            "send": self._send,
            "assign": lambda _, now: outcome_out(self._steering.assign(now)),
            "tick": lambda said, now: decision_out(self._steering.tick(self._instances[said["tick"]], now)),
        }

    def play(self, said: Json) -> tuple[str, object, int] | None:
        """(kind, answer, numbers drawn) of a decision; None: the line is news only."""
        if "progress" in said:
            name, flight, tokens, now = said["progress"]
            self._instances[name].book.progress(self._flights[flight], tokens, now)
            return None
        if "close" in said:
            name, flight = said["close"]
            self._instances[name].book.close(self._flights.pop(flight))
            return None
        self._tell(said)
        self._steering.share = said["share"]
        self._move(said["moved"])
        if "relabel" in said:
            self._steering.relabel([_rules(rules) for rules in said["relabel"]])
            return None
        kind = next(kind for kind in self._decide if kind in said)
        self._draws, self._drawn = deque(said["draws"]), 0
        answer = orjson.loads(orjson.dumps(self._decide[kind](said, said["now"])))
        return kind, answer, self._drawn

    def _arrive(self, said: Json, now: Seconds) -> object:
        flight, pool = said["arrive"]
        return outcome_out(self._steering.arrive(self._flight(flight), pool, now))

    def _send(self, said: Json, now: Seconds) -> object:
        flight, pool, name = said["send"]
        return outcome_out(self._steering.send(self._flight(flight), pool, self._instances[name], now))

    def _draw(self, below: int) -> int:
        """What was drawn then; laws that draw more often than they did get zeros."""
        self._drawn += 1
        return self._draws.popleft() if self._draws else 0

    def _flight(self, given: Json) -> Flight:
        known = {
            **given,
            "type": _type(given["type"]),
            "ttft": NEVER if given["ttft"] is None else given["ttft"],
        }
        flight = self._flights[given["id"]] = Flight(**known)
        return flight

    def _tell(self, said: Json) -> None:
        """What the shell had set since the last line."""
        for name, facts in said["facts"].items():
            for field, value in zip(FACTS, facts, strict=True):
                read = _READ.get(field)
                setattr(self._instances[name], field, value if value is None or read is None else read(value))
        for name, model in said["models"].items():
            self._instances[name].model = None if model is None else model_in(model)
        for name, sessions in said["sessions"].items():
            self._instances[name].sessions = sessions

    def _move(self, moved: Iterable[tuple[str, str | None]]) -> None:
        """Who has left the queues, or gone to another, without being granted or refused."""
        queues = self._steering.queues
        for name, pool in moved:
            flight = self._flights[name]
            for queue in queues.values():
                queue.remove(flight)
            if pool is not None:
                queues[pool].push(flight, self._steering.admission)


def _bare(name: str, tp: int) -> Instance:
    return Instance(name, "", LoadBook(), Limits(), None, tp=tp)


def _type(name: str) -> RequestType:
    return RequestType(Size[name[0]], Size[name[1]])


def _rules(given: Json) -> PoolRules:
    types = frozenset(_type(name) for name in given["types"])
    return PoolRules(given["name"], Objectives(**tupled(given["objectives"])), types, given["shed"])


def _peer(given: Json) -> PeerPrompts:
    due = given["deadline"]
    return PeerPrompts(given["uncached_tokens"], NEVER if due is None else due, given["lost"])


_READ: Mapping[str, Callable[[Json], object]] = {
    "gauges": lambda given: Gauges(**given),
    "peer_prompts": _peer,
    "limits": lambda given: Limits(**given),
    "bands": lambda given: Bands(**tupled(given)),
}
