"""Pure: what a replica tells the others of its load, and what theirs adds up to.

Per instance: requests it has there, prompt tokens not answered yet, and when the tightest of their first
tokens is due. Beside it, what each key with a limit has used, what the plan does, and which bodies took
engines down. Deadlines travel as seconds left, not as times: no two machines share a monotonic clock.
"""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass

import orjson

from control.lifecycle import Phase
from control.state import LoadBook
from joulegate.units import Seconds
from router.rate_limits import KeyUse

MAX_INSTANCES = 4096
MAX_KEYS = 10_000
MAX_DEATHS = 1000


@dataclass(frozen=True, slots=True)
class PeerLoad:
    """Load of one instance that came through other replicas."""

    running: int = 0
    prompts: int = 0  # sent, unanswered
    prompt_tokens: int = 0
    context: float = 0.0
    due_in: float = float("inf")  # seconds until the tightest first token

    def plus(self, other: "PeerLoad") -> "PeerLoad":
        return PeerLoad(
            self.running + other.running,
            self.prompts + other.prompts,
            self.prompt_tokens + other.prompt_tokens,
            self.context + other.context,
            min(self.due_in, other.due_in),
        )


NO_LOAD = PeerLoad()


@dataclass(frozen=True, slots=True)
class News:
    """What one replica said last."""

    loads: Mapping[str, PeerLoad]  # by instance
    uses: Mapping[str, KeyUse]  # by key
    proven: Mapping[str, int]  # instance -> checksum of the GPUs it was seen to work on
    phases: Mapping[str, Phase]  # of instances the plan keeps out of rotation; only who leads says so
    asks: frozenset[tuple[str, str]]  # model and pool in which requests wait that nobody serves
    deaths: Mapping[int, frozenset[str]]  # body -> instances lost while it was in flight there
    leaving: bool  # it was told to stop: it leads only if nobody else can


def encode(
    books: Mapping[str, LoadBook],
    uses: Mapping[str, KeyUse],
    proven: Mapping[str, int],
    phases: Mapping[str, Phase],
    asks: Iterable[tuple[str, str]],
    deaths: Mapping[int, frozenset[str]],
    leaving: bool,
    now: Seconds,
) -> bytes:
    """This replica's load, instances it does not use left out."""
    loads = {
        name: [
            book.running,
            len(book.prompts),
            book.queued_tokens,
            book.context,
            min((flight.deadline - now for flight in book.prompts.values()), default=None),
        ]
        for name, book in books.items()
        if book.flights
    }
    keys = {key: astuple(use) for key, use in uses.items()}
    told = {"v": 1, "loads": loads, "keys": keys, "proven": proven}
    plan = {"phases": {name: phase.value for name, phase in phases.items()}, "asks": list(asks)}
    lost = [(body, sorted(names)) for body, names in deaths.items()]
    return orjson.dumps({**told, **plan, "deaths": lost, "leaving": leaving})


def decode(message: bytes) -> News:
    """Raises ValueError for what is no load of a replica."""
    found = orjson.loads(message)
    if not isinstance(found, dict) or found.get("v") != 1 or not isinstance(found.get("loads"), dict):
        raise ValueError("not a replica's load")
    uses = found.get("keys", {})
    if not isinstance(uses, dict):
        raise ValueError("not what keys have used")
    loads: dict[str, PeerLoad] = {}
    for name, fields in list(found["loads"].items())[:MAX_INSTANCES]:
        running, prompts, tokens, context, due_in = fields
        loads[name] = PeerLoad(
            int(_amount(running)),
            int(_amount(prompts)),
            int(_amount(tokens)),
            _amount(context),
            float("inf") if due_in is None else float(due_in),
        )
    proven = found.get("proven", {})
    if not isinstance(proven, dict):
        raise ValueError("not what was proven")
    return News(
        loads,
        {key: _use(fields) for key, fields in list(uses.items())[:MAX_KEYS]},
        {name: int(_amount(checksum)) for name, checksum in list(proven.items())[:MAX_INSTANCES]},
        _phases(found.get("phases", {})),
        _asks(found.get("asks", [])),
        _deaths(found.get("deaths", [])),
        found.get("leaving") is True,
    )


def _phases(told: object) -> dict[str, Phase]:
    if not isinstance(told, dict):
        raise ValueError("not the phases of instances")
    return {name: Phase(phase) for name, phase in list(told.items())[:MAX_INSTANCES]}


def _asks(told: object) -> frozenset[tuple[str, str]]:
    if not isinstance(told, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in told):
        raise ValueError("not what is asked for")
    return frozenset((str(model), str(pool)) for model, pool in told[:MAX_INSTANCES])


def _deaths(told: object) -> dict[int, frozenset[str]]:
    if not isinstance(told, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in told):
        raise ValueError("not what was lost")
    return {body: frozenset(map(str, names)) for body, names in told[:MAX_DEATHS] if isinstance(body, int)}


def _use(fields: list[object]) -> KeyUse:
    running, requests, tokens = fields
    return KeyUse(int(_amount(running)), int(_amount(requests)), int(_amount(tokens)))


def _amount(value: object) -> float:
    """Raises ValueError for what cannot be an amount of anything."""
    if not isinstance(value, int | float) or not 0.0 <= value < 1e12:
        raise ValueError(f"not an amount: {value!r:.40}")
    return float(value)


def total(loads: Iterable[Mapping[str, PeerLoad]]) -> dict[str, PeerLoad]:
    """Of all replicas, by instance."""
    sums: dict[str, PeerLoad] = {}
    for each in loads:
        for name, load in each.items():
            sums[name] = sums.get(name, NO_LOAD).plus(load)
    return sums
