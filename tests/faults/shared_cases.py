"""Faults of what replicas share, and of replicas themselves, while every one of the three is under load."""

import asyncio
import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from tests.fakes.engine import DONE, LAST_CHUNK, ROLE, STREAM_HEAD, Line, Received, chunk, event
from tests.faults.cases import CHAT, HELD, Seen
from tests.faults.rig import PATIENCE, Answer, Gateway, Pending, Site, until
from tests.redis_server import RedisServer
from tests.threads import beside

LEASE_TTL = 2.0
TTFT, TPOT = 0.25, 0.1  # seconds: the objectives of what is asked here
TOKENS = 20
ENOUGH = 40  # answers of each replica
CLIENTS = 6
PAIRS = 4  # of a killing and a time without, at most
CHANCE = 2  # answers after a killing that may be late for no reason
NOISE = 2.0  # times as many may be late as without a killing


@dataclass(frozen=True, slots=True)
class SharedCase:
    fault: str
    happen: Callable[[Site, RedisServer], Seen]


@dataclass
class Burst:
    """Clients that ask again and again, each one replica; where nobody is there any more, the next."""

    gateways: Sequence[Gateway]
    answers: dict[str, list[Answer]] = field(default_factory=dict)  # by replica
    _ends: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def begin(self, clients: int) -> None:
        self.answers = {name_of(gateway): [] for gateway in self.gateways}
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, which: int) -> None:
        while not self._ends.is_set():
            gateway = self.gateways[which % len(self.gateways)]
            mine = self.answers[name_of(gateway)]
            mine.append(gateway.ask(tokens=TOKENS, stream=True))
            if mine[-1].status != 200:
                which += 1
                self._ends.wait(0.1)

    def end(self) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def failures(self, gateway: Gateway) -> list[Answer]:
        """Answers that are not whole."""
        found = self.answers[name_of(gateway)]
        return [one for one in found if one.status != 200 or one.cut or "[DONE]" not in one.body]


@contextlib.contextmanager
def burst(gateways: Sequence[Gateway]) -> Iterator[Burst]:
    made = Burst(gateways)
    made.begin(CLIENTS)
    try:
        until(lambda: all(len(answers) >= 2 for answers in made.answers.values()))
        yield made
    finally:
        made.end()


def name_of(gateway: Gateway) -> str:
    return str(gateway.port)


def leader(site: Site) -> Gateway:
    until(lambda: sum(leads(gateway) for gateway in site.gateways) == 1)
    return next(gateway for gateway in site.gateways if leads(gateway))


def leads(gateway: Gateway) -> bool:
    return bool(gateway.picture().get("leads"))


def holds(gateway: Gateway) -> bool:
    """It has the agent's lease: the clocks are its to set."""
    agents = gateway.picture().get("agents", [])
    assert isinstance(agents, list)
    return bool(agents and agents[0]["lease"])


def together(site: Site) -> bool:
    """Every replica sees the others, and one leads and holds the lease."""
    seen = [gateway.picture().get("replicas") for gateway in site.gateways]
    led = [gateway for gateway in site.gateways if leads(gateway)]
    return seen == [len(site.gateways)] * len(site.gateways) and len(led) == 1 and holds(led[0])


def without_redis(site: Site, broken: Callable[[], None], mend: Callable[[], None]) -> Seen:
    head = leader(site)
    with burst(site.gateways) as load:
        broken()
        for gateway in site.gateways:
            until(lambda gateway=gateway: gateway.gauge("joulegate_store_up") == 0)  # type: ignore[misc]
        assert holds(head), "who led goes on"
        mend()
    failed = [one for gateway in site.gateways for one in load.failures(gateway)]
    assert not failed, failed[:3]
    return f"{counted(load)} of {counted(load)} streams whole, over all replicas", f"{HELD} of who led"


def counted(load: Burst) -> int:
    return sum(map(len, load.answers.values()))


def redis_killed(site: Site, redis: RedisServer) -> Seen:
    return without_redis(site, redis.kill, redis.start)


def redis_stopped(site: Site, redis: RedisServer) -> Seen:
    return without_redis(site, lambda: redis.signal(signal.SIGSTOP), lambda: redis.signal(signal.SIGCONT))


def slow(redis: RedisServer, ends: threading.Event) -> None:
    """It answers in short moments only; the gateways wait for a quarter of a second."""
    while not ends.wait(0.02):
        redis.signal(signal.SIGSTOP)
        ends.wait(0.2)
        redis.signal(signal.SIGCONT)


def redis_slow(site: Site, redis: RedisServer) -> Seen:
    with burst(site.gateways) as load, beside(partial(slow, redis)):
        until(lambda: all(len(answers) >= ENOUGH for answers in load.answers.values()))
    failed = [one for gateway in site.gateways for one in load.failures(gateway)]
    assert not failed, failed[:3]
    return f"{counted(load)} of {counted(load)} streams whole", f"{HELD}; another may lead"


def redis_flushed(site: Site, redis: RedisServer) -> Seen:
    with burst(site.gateways) as load:
        assert redis.command("FLUSHALL") == b"+OK\r\n"
        until(lambda: together(site))
    failed = [one for gateway in site.gateways for one in load.failures(gateway)]
    assert not failed, failed[:3]
    return f"{counted(load)} of {counted(load)} streams whole", f"{HELD}; another may lead"


def taken_over(site: Site, gone: Gateway) -> float:
    """Seconds until another replica holds the lease."""
    others = [gateway for gateway in site.gateways if gateway is not gone]
    return until(lambda: any(leads(gateway) and holds(gateway) for gateway in others))


def leader_stopped(site: Site, _: RedisServer) -> Seen:
    head = leader(site)
    with burst(site.gateways) as load:
        head.process.signal(signal.SIGSTOP)
        took = taken_over(site, head)
        head.process.signal(signal.SIGCONT)
        until(lambda: together(site))
    failed = [one for gateway in site.gateways for one in load.failures(gateway)]
    assert not failed, failed[:3]
    said = f"{counted(load)} of {counted(load)} streams whole; those of the stopped one wait until it resumes"
    return said, f"another replica sets them after {took:.1f} s (lease {LEASE_TTL:.0f} s)"


def leader_killed(site: Site, _: RedisServer) -> Seen:
    return killed(site, leader)


def follower_killed(site: Site, _: RedisServer) -> Seen:
    return killed(site, lambda site: next(one for one in site.gateways if one is not leader(site)))


class Standstill:
    """When this machine did nothing for anybody: what was late then is no replica's fault."""

    STEP, LONG = 0.01, 0.03  # seconds

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def watch(self, ends: threading.Event) -> None:
        start = time.monotonic()
        while not ends.wait(self.STEP):
            end = time.monotonic()
            if end - start > self.LONG:
                self._spans.append((start + self.STEP, end))
            start = end

    def within(self, start: float, end: float) -> float:
        """Seconds of it."""
        return sum(max(0.0, min(end, last) - max(start, first)) for first, last in self._spans)

    def in_time(self, one: Answer) -> bool:
        """Whether both objectives were met, standstills taken off."""
        begun, ended = one.began + one.first, one.began + one.seconds
        ttft = one.first - self.within(one.began, begun)
        tpot = (ended - begun - self.within(begun, ended)) / (TOKENS - 1)
        return ttft <= TTFT and tpot <= TPOT


def killed(site: Site, chosen: Callable[[Site], Gateway]) -> Seen:
    """How many answers of the survivors are late is held against two that are alone with the same load.

    This machine does other things too: where some are late, both are counted again, and all of it counts.
    """
    now, alone = list[bool](), list[bool]()
    for _ in range(PAIRS):
        gone = chosen(site)
        others = [gateway for gateway in site.gateways if gateway is not gone]
        led = leads(gone)
        met, took, forgot = bereft(site, gone, others)
        now += met
        alone += undisturbed(others)
        gone.process.start()
        until(lambda: together(site))
        if met.count(False) <= CHANCE:
            break
    else:
        late = NOISE * len(now) * alone.count(False) / len(alone)
        assert now.count(False) <= CHANCE * PAIRS + late, f"{share(now)} in time; by two alone {share(alone)}"
    clocks = f"another replica sets them after {took:.1f} s (lease {LEASE_TTL:.0f} s)" if led else HELD
    said = f"its own streams are cut, 0 at the others: {share(now)} in time, {share(alone)} by two alone"
    return f"{said}; they forget its load in {forgot:.1f} s", clocks


def bereft(site: Site, gone: Gateway, others: Sequence[Gateway]) -> tuple[list[bool], float, float]:
    """Which answers of the survivors are in time once `gone` is killed; seconds until they have the clocks,
    and until they forget its load."""
    stood = Standstill()
    with beside(stood.watch), burst(site.gateways) as load:
        theirs = [load.answers[name_of(gateway)] for gateway in others]
        before = [len(answers) for answers in theirs]
        start = time.monotonic()
        gone.process.kill()
        took = taken_over(site, gone)
        for gateway in others:
            until(lambda gateway=gateway: gateway.picture()["replicas"] == 2)  # type: ignore[misc]
        forgot = time.monotonic() - start
        until(lambda: all(len(a) >= n + ENOUGH for a, n in zip(theirs, before, strict=True)))
    for gateway in others:
        assert not load.failures(gateway), load.failures(gateway)[:3]
        until(lambda gateway=gateway: gateway.in_flight() == 0)  # type: ignore[misc]
    met = [stood.in_time(one) for answers, n in zip(theirs, before, strict=True) for one in answers[n:]]
    return met, took, forgot


def undisturbed(gateways: Sequence[Gateway]) -> list[bool]:
    """Which answers are in time where these replicas have the same load, and nothing happens."""
    stood = Standstill()
    with beside(stood.watch), burst(gateways) as load:
        until(lambda: all(len(answers) >= ENOUGH for answers in load.answers.values()))
    return [stood.in_time(one) for answers in load.answers.values() for one in answers]


def share(met: list[bool]) -> str:
    return f"{sum(met)} of {len(met)}"


class Held:
    """One answer of `near` that goes on until it is told to end; all others pass."""

    def __init__(self, site: Site, tokens: int) -> None:
        self.begun, self.ends = threading.Event(), threading.Event()
        self._site = site
        self._mark = json.dumps({"max_tokens": tokens}, separators=(",", ":"))[1:-1].encode()

    async def script(self, line: Line, received: Received) -> None:
        if self._mark not in received.body:
            await self._site.front.pass_on(line, received)
            return
        await line.send(STREAM_HEAD + chunk(ROLE))
        self.begun.set()
        while not self.ends.is_set():
            await line.send(chunk(event("a")))
            await asyncio.sleep(0.1)
        await line.send(chunk(DONE) + LAST_CHUNK)


def told_to_stop(site: Site, _: RedisServer) -> Seen:
    """SIGTERM: what runs ends whole, what is new is refused; meanwhile another takes the clocks over."""
    gone = leader(site)
    others = [gateway for gateway in site.gateways if gateway is not gone]
    held = Held(site, 401)
    with burst(site.gateways) as load, site.front.doing(CHAT, held.script):
        pending = Pending(lambda: gone.ask(tokens=401, stream=True))
        assert held.begun.wait(PATIENCE)
        gone.process.signal(signal.SIGTERM)
        took = taken_over(site, gone)
        assert gone.process.running is not None
        assert gone.process.running.poll() is None, "it serves on"
        held.ends.set()
        last = pending.join()
        code = gone.process.running.wait(60.0)
    gone.process.start()
    assert code in (0, -signal.SIGTERM), code
    mine = load.failures(gone)
    assert {one.status for one in mine} <= {0, 503}, [one for one in mine if one.status == 200][:3]
    assert (last.status, last.cut) == (200, False), last
    assert last.body.endswith("[DONE]\n\n"), last.body[-400:]
    for gateway in others:
        assert not load.failures(gateway), load.failures(gateway)[:3]
    whole = len(load.answers[name_of(gone)]) - len(mine)
    said = f"all {whole} streams of its own whole, new ones refused; 0 fail at the others"
    return said, f"another replica sets them after {took:.1f} s, while it still serves"


def reloaded(site: Site, _: RedisServer) -> Seen:
    with burst(site.gateways) as load:
        for _time in range(20):
            for gateway in site.gateways:
                assert gateway.http.post("/admin/reload").json()["refused"] == ""
        for gateway in site.gateways:
            gateway.process.signal(signal.SIGHUP)
    failed = [one for gateway in site.gateways for one in load.failures(gateway)]
    assert not failed, failed[:3]
    return f"{counted(load)} of {counted(load)} streams whole", HELD


SHARED_CASES = (
    SharedCase("settings reloaded 20 times under load", reloaded),
    SharedCase("leader told to stop (SIGTERM) under load", told_to_stop),
    SharedCase("Redis killed", redis_killed),
    SharedCase("Redis stopped", redis_stopped),
    SharedCase("Redis slow (0.2 s)", redis_slow),
    SharedCase("Redis flushed", redis_flushed),
    SharedCase("leader stopped and resumed, under load", leader_stopped),
    SharedCase("leader killed in a burst", leader_killed),
    SharedCase("another replica killed under load", follower_killed),
)
