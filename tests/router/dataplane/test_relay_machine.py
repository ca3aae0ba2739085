"""Clients, instances and faults in any order, through the real guard, relay, gate and connections.

Only sockets are missing: what an instance sends, and when, is a step of the machine. Whatever happens, every
request that was let in leaves once, nothing is sent again after a client got its first byte, and in the end
nothing is left.
"""

import asyncio
import random
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from uvicorn.server import ServerState

from joulegate.settings.gateway import Gateway
from joulegate.units import Seconds
from router.accounts import Accounts
from router.build_fleet import build_fleet
from router.connection import Connection
from router.errors import UpstreamSilent
from router.fleet import Signal
from router.gate import FleetGate
from router.guard import Guard
from router.keys import Keys
from router.limits import EdgeLimits, RelayLimits, UpstreamLimits
from router.pools import Member, Trip
from router.ports import Endpoint, Report
from router.rate_limits import KeyLimits, RateLimits
from router.relay import Relay
from router.responses import Makers
from router.tally import Tally
from router.upstream import UpstreamPool
from router.warden import Warden
from tests.fakes.edge import hello, post
from tests.fakes.engine import DONE, LAST_CHUNK, ROLE, STREAM_HEAD, USAGE, answer, chunk, event
from tests.fakes.recorder import Recorder

TURNS = 12  # of the loop: more than one step takes to come to rest
CHAT = b'{"model":"m","max_tokens":4,"messages":[{"role":"user","content":"%d"}]}'
STREAM = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"%d"}]}'
ASKED = re.compile(rb"x-request-id: (r\d+)\r\n")
BUSY = b'{"error":{"message":"The engine is busy","type":"t","param":null,"code":503}}'
SENT = {  # by an instance that was asked
    "whole": answer(b'{"usage":{"prompt_tokens":3,"completion_tokens":2}}'),
    "nothing": answer(b""),
    "failed": answer(b"oops", b"500 Internal Server Error"),
    "busy": answer(BUSY, b"503 Service Unavailable"),
    "the client's fault": answer(b'{"error":{"message":"m","type":"t"}}', b"400 Bad Request"),
    "garbage": b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-",
    "head": STREAM_HEAD,
    "role": chunk(ROLE),
    "word": chunk(event("a")),
    "half a word": chunk(event("a"))[:20],
    "usage": chunk(USAGE),
    "done": chunk(DONE),
    "error": chunk(b'data: {"error":{"message":"boom","code":500}}\n\n'),
    "end": LAST_CHUNK,
    "stream": STREAM_HEAD + chunk(ROLE + event("a")) + chunk(USAGE + DONE) + LAST_CHUNK,
}


class Counted(Accounts):
    """Remembers who came and who left."""

    def __init__(self, fleet: Any, tally: Tally) -> None:
        super().__init__(fleet, tally)
        self.inside: Counter[int] = Counter()
        self.left = 0

    def granted(self, trip: Trip, member: Member, reason: str, now: Seconds) -> None:
        self.inside[id(trip)] += 1
        super().granted(trip, member, reason, now)

    def closed(self, trip: Trip | None, member: Member, report: Report, now: Seconds) -> None:
        if trip is not None:
            assert self.inside[id(trip)] == 1, "reported twice, or never let in"
            del self.inside[id(trip)]
            self.left += 1
        super().closed(trip, member, report, now)


@dataclass(eq=False)
class Wire:
    """One end of a connection without a socket."""

    protocol: Any
    transport: Recorder = field(default_factory=Recorder)
    seen: int = 0  # bytes of what was written that were looked at
    lost: bool = False

    def lose(self, error: Exception | None = None) -> None:
        if not self.lost:
            self.lost = self.transport.ended = True
            self.protocol.connection_lost(error)


class Switchboard(UpstreamPool):
    """Connections whose other end is the machine's."""

    def __init__(self, limits: UpstreamLimits) -> None:
        super().__init__(limits)
        self.wires: list[Wire] = []
        self.refuses: set[str] = set()

    async def connect(self, endpoint: Endpoint) -> Connection:
        if endpoint.name in self.refuses:
            return await super().connect(endpoint)  # nobody listens there
        connection = Connection(asyncio.get_running_loop(), self.limits)
        wire = Wire(connection)
        connection.connection_made(wire.transport)
        self.wires.append(wire)
        self._busy.add(connection)
        return connection


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        instances = [{"name": f"i{n}", "url": "http://127.0.0.1:1", "slots": 1} for n in range(2)]
        models = [{"name": "m", "pools": [{"name": "p", "instances": instances}]}]
        self.fleet = build_fleet(Gateway.model_validate({"version": 1, "models": models}))
        self.members = [member for _, _, member in self.fleet.members()]
        self.accounts = Counted(self.fleet, Tally())
        self.limits = RateLimits({"": KeyLimits(concurrency=6)}, Seconds(0.0))
        self.gate = FleetGate(
            self.fleet,
            self.accounts,
            self.limits,
            Makers(),
            0.5,
            random.Random(3).randrange,
            self.loop.time,
            lambda: None,
        )
        self.pool = Switchboard(UpstreamLimits())
        self.relay = Relay(self.gate, self.pool, Keys(), RelayLimits(), lambda _: None)
        self.config = uvicorn.Config(hello, http="httptools", ws="none", log_config=None)
        self.loop.run_until_complete(self.load())
        self.clients: list[Wire] = []
        self.asked: dict[bytes, Wire] = {}  # who asked what
        self.sent: Counter[bytes] = Counter()  # to instances
        self.once: set[bytes] = set()  # of those asked, what may not run twice
        self.recover()

    async def load(self) -> None:
        self.config.load()

    def turn(self) -> None:
        self.loop.run_until_complete(self.rest())

    async def rest(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)
            for wire in (*self.clients, *self.pool.wires):
                if wire.transport.ended:
                    wire.lose()
            self.look()

    def look(self) -> None:
        """What has just been sent to instances: at most twice, and never after the client's first byte."""
        for wire in self.pool.wires:
            for name in ASKED.findall(wire.transport.written[wire.seen :]):
                self.sent[name] += 1
                most = 1 if name in self.once else 3  # elsewhere, and again where a kept connection died
                assert self.sent[name] <= most
                assert b"\nx-request-id: %b\r" % name not in self.asked[name].transport.written
            wire.seen = len(wire.transport.written)

    @rule(
        which=st.integers(0, 5),
        stream=st.booleans(),
        path=st.sampled_from(["chat/completions", "embeddings", "files"]),
    )
    def ask(self, which: int, stream: bool, path: str) -> None:
        """Over a new connection, or one that was used before, maybe ahead of its answer."""
        there = [wire for wire in self.clients if not wire.lost]
        if which >= len(there):
            limits, state = EdgeLimits(), ServerState()
            warden = Warden(limits)
            guard = Guard(self.config, state, {}, self.loop, limits=limits, warden=warden, relay=self.relay)
            wire = Wire(guard)
            self.clients.append(wire)
            guard.connection_made(wire.transport)
        else:
            wire = there[which]
        name = b"r%d" % (len(self.asked) + 1)
        self.asked[name] = wire
        if path == "files":
            self.once.add(name)
        body = (STREAM if stream else CHAT) % len(self.asked)
        self.loop.call_soon(
            wire.protocol.data_received,
            post(body, f"/v1/{path}", b"x-request-id: %b\r\n" % name, close=False),
        )
        self.turn()

    @rule(which=st.integers(0, 5))
    def leave(self, which: int) -> None:
        there = [wire for wire in self.clients if not wire.lost]
        if there:
            self.loop.call_soon(there[which % len(there)].lose)
            self.turn()

    @rule(which=st.integers(0, 7), sent=st.lists(st.sampled_from(sorted(SENT)), min_size=1, max_size=4))
    def answered(self, which: int, sent: list[str]) -> None:
        for what in sent:
            if (wire := self.open(which)) is not None:
                self.loop.call_soon(wire.protocol.data_received, SENT[what])
                self.turn()

    @rule(which=st.integers(0, 7))
    def served(self, which: int) -> None:
        """As an instance should."""
        if (wire := self.open(which)) is not None:
            body = wire.transport.written.rpartition(b"POST ")[2]
            wire.protocol.data_received(SENT["stream" if b'"stream":true' in body else "whole"])
            self.turn()

    @rule(which=st.integers(0, 7), reset=st.booleans())
    def die(self, which: int, reset: bool) -> None:
        if (wire := self.open(which)) is not None:
            self.loop.call_soon(wire.lose, ConnectionResetError() if reset else None)
            self.turn()

    @rule(which=st.integers(0, 7))
    def silent(self, which: int) -> None:
        if (wire := self.open(which)) is not None:
            self.loop.call_soon(wire.protocol.fail, UpstreamSilent("the instance did not answer in time"))
            self.turn()

    @rule(which=st.integers(0, 1), refuses=st.booleans(), draining=st.booleans())
    def change(self, which: int, refuses: bool, draining: bool) -> None:
        member = self.members[which]
        (self.pool.refuses.add if refuses else self.pool.refuses.discard)(member.law.name)
        member.status.draining = draining
        self.gate.changed(Seconds(self.loop.time()))
        self.turn()

    @rule()
    def recover(self) -> None:
        """Probes pass, and what is suspected is forgiven."""
        for member in self.members:
            for signal in (Signal.PROBE_PASSED, Signal.REQUEST_SUCCEEDED):
                member.status.signal(signal, Seconds(self.loop.time()))
        self.gate.changed(Seconds(self.loop.time()))
        self.turn()

    @precondition(lambda self: self.clients)
    @rule(which=st.integers(0, 5), paused=st.booleans())
    def keep_up(self, which: int, paused: bool) -> None:
        """A client reads slowly, or goes on."""
        guard = self.clients[which % len(self.clients)]
        if not guard.lost:
            (guard.protocol.pause_writing if paused else guard.protocol.resume_writing)()
            self.turn()

    def open(self, which: int) -> Wire | None:
        """A connection to an instance."""
        there = [wire for wire in self.pool.wires if not wire.lost]
        return there[which % len(there)] if there else None

    @invariant()
    def books_agree(self) -> None:
        inside = sum(member.law.book.running for member in self.members)
        assert inside == self.accounts.inside.total()
        assert inside <= sum(member.open for member in self.members)
        assert all(0 <= member.law.book.running <= member.law.slots for member in self.members)

    @invariant()
    def one_answer_a_request(self) -> None:
        for wire in self.clients:
            asked = sum(other is wire for other in self.asked.values())
            assert wire.transport.written.count(b"HTTP/1.1 ") <= asked

    def teardown(self) -> None:
        for wire in self.clients:
            wire.lose()
        self.turn()
        self.turn()
        assert [member.open for member in self.members] == [0, 0]
        assert [member.law.book.running for member in self.members] == [0, 0]
        assert not self.accounts.inside
        assert [len(pool.queue) for _, pool in self.fleet.pools()] == [0]
        assert self.pool.busy_connections == 0
        for _ in range(6):
            self.limits.take("", Seconds(0.0))  # nobody holds a place of the key's
        outcomes = sum((Counter(pool.tally.outcomes) for _, pool in self.fleet.pools()), Counter())
        assert outcomes.total() >= self.accounts.left
        self.loop.run_until_complete(self.pool.aclose())
        self.loop.close()


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestRelay = Machine.TestCase
