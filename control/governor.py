"""Pure: the slowest clock that keeps every objective of one instance, and why.

Theory of operation (reference: control laws; papers §2.6, §10.3). Each decision is the highest of

1. the *lowest feasible* clock: every queued prompt gets its first token in time, a decode step and the time
   that prompts take between two of them are within the TPOT objective, steps within `max_slowdown`, queued
   prompts leave short answers their TPOT, every E2E objective that maximum clock would keep is kept as the
   batch drains. Higher clocks are never slower, so a binary search finds it;
2. the *floor of the load* (`control.floor`): below it energy rises again, because batches grow. Its price
   for delay is what keeps room for the bursts that have not come yet: it is learned from objectives missed
   (`control.prices`).

Raising is never delayed. Lowering waits until the higher clock has not been needed for `dwell`, at most
once in `lowering_interval`. Without a model, without word from the agent, or with an engine that queues
work of others, the answer is the default clock (no ceiling) or the maximum, and says so: no energy is saved
on information one does not have. `choose` is cheap enough to call on an arrival that leaves the `Room` it
granted before.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

from control.projection import Load, Pace, crowd, dues, ends_met, peak_kv, within_reach
from control.state import NO_ROOM, Flight, Instance, Room
from joulegate.domain import EngineModel, Objectives
from joulegate.units import MegaHertz, Seconds

STALL = 2.0
STALL_SHARE = 0.008  # of iterations
SHORT_PROMPT = 256.0  # tokens of a prompt that may come while others are read and is due the soonest
NEAR_BEST = 1.2  # times an iteration at maximum clock: so long a prompt may be read while others wait
KV_SHARE = 0.95  # of the cache that a projection may fill: block rounding, and lengths beyond q90


class Reason(Enum):
    """Why a clock was chosen; the label of `joulegate_decisions_total`."""

    TTFT = "ttft"
    TPOT = "tpot"
    E2E = "e2e"
    SLOWDOWN = "slowdown"
    LOAD = "load"  # the energy floor of the load
    IDLE = "idle"
    DWELL = "dwell"  # a lower clock would do, but not for long enough yet
    OVERLOAD = "overload"  # not even maximum clock keeps every objective
    ROOM = "room"  # a prompt that comes while others are read must be in time too
    CROWD = "crowd"  # prompts in one iteration after the other would spoil the TPOT of short answers
    STALL = "stall"  # prompts would make every stream pause for too long
    KV = "kv"  # the cache would overflow before the batch drains: no slower, contexts would pile up
    SHARED = "shared"  # the engine queues requests that did not come through us
    STATIC = "static"
    NO_MODEL = "no_model"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class GovernorRules:
    """Constants of the laws; seconds and ratios."""

    switch: Seconds = Seconds(0.025)  # clock-switch latency of GPUs on which none was measured
    dwell: Seconds = Seconds(0.5)
    lowering_interval: Seconds = Seconds(1.0)
    stale_after: Seconds = Seconds(2.0)
    static_clock: MegaHertz | None = None  # mode `static`: this clock, whatever the load
    floor: bool = True  # false: go below the floor of the load (what throttLL'eM does, to compare)


@dataclass(slots=True)
class Outlook:
    """What the governor is told about the load to come."""

    floor: MegaHertz | None = None  # floor of the load; None: not known yet
    full_chunks: float = 0.0  # iterations per second that prompts fill to the chunk budget
    prompt_share: float = 0.0  # share of engine time that prompts take, at the floor of the load
    queued: tuple[Flight, ...] = ()  # in the gateway, bound for this instance, in order
    short: float = 0.0  # output tokens that nearly every answer exceeds; 0: not known
    credit: bool = False  # fewer requests missed than may, of every objective


@dataclass(slots=True)  # not frozen, like all that is made for every decision: that costs a third of one
class Memory:
    """What one decision leaves for the next."""

    clock: MegaHertz | None = None
    lowered_at: float = -1e9
    peaks: tuple[tuple[float, MegaHertz], ...] = ()  # (when, wanted), newest last, wanted descending
    crowded: Seconds | None = None  # since when more prompts are queued than one iteration takes


@dataclass(slots=True)
class Decision:
    """One choice. `clock` None: no ceiling (driver default)."""

    clock: MegaHertz | None
    reason: Reason
    instance: str
    tpot: Seconds | None  # expected
    at_clock: Room
    at_max: Room
    at: Seconds
    prompt_rate: float | None = None  # prompt tokens per second it takes in at this clock
    running: int = 0  # sequences decoding
    waiting: int = 0  # prompt tokens queued
    tpot_objective: Seconds = Seconds(0.0)
    unknown: str = ""  # what was missing, where nothing could be chosen

    @property
    def sentence(self) -> str:
        """For people."""
        if self.tpot is None:
            return f"{self.instance}: {self.unknown}"
        expected, aim = self.tpot * 1e3, self.tpot_objective * 1e3
        tpot = f"TPOT {expected:.0f} ms of {aim:.0f} expected with {self.running} running"
        if self.waiting:
            tpot += f", {self.waiting} prompt tokens queued"
        return f"{self.instance} {self.clock} MHz: {_BECAUSE[self.reason]}; {tpot}"


def choose(
    instance: Instance,
    outlook: Outlook,
    objectives: Objectives,
    rules: GovernorRules,
    memory: Memory,
    now: Seconds,
) -> tuple[Decision, Memory]:
    """The clock of `instance` until something changes."""
    unknown = _unknown(instance, rules, now)
    if unknown is not None:
        return unknown, Memory(clock=None, lowered_at=memory.lowered_at)
    model = instance.model
    assert model is not None
    case = _Case(instance, model, outlook, objectives, rules, memory.crowded, now)
    wanted, reason = _wanted(case, outlook, rules)
    clock, memory = _paced(wanted, memory, rules, now)
    memory.crowded = case.crowd.since if case.crowd is not None else None
    if clock != wanted:
        reason = Reason.DWELL
    return _decision(case, clock, reason), memory


class _Case:
    """One instance at one moment, as the tests below need it."""

    def __init__(
        self,
        instance: Instance,
        model: EngineModel,
        outlook: Outlook,
        objectives: Objectives,
        rules: GovernorRules,
        crowded: Seconds | None,
        now: Seconds,
    ) -> None:
        book, chunk, top = instance.book, instance.limits.chunk_budget, model.clocks[-1]
        running = max(book.decoding, instance.gauges.running - len(book.prompts) if instance.gauges else 0)
        context = book.context * (running / book.decoding) if book.decoding else 0.0
        peers = (instance.peer_prompts,) if instance.peer_prompts is not None else ()
        self.instance, self.model, self.objectives, self.now = instance, model, objectives, now
        self.due = due = dues((*peers, *book.prompts.values(), *outlook.queued), chunk)
        self.load = load = Load(running, context, due.tokens, chunk)
        self.fastest = fastest = Pace(model, load, top, instance.factor(top))
        clock = instance.clock if instance.clock is not None else top
        current = fastest if clock == top else Pace(model, load, clock, instance.factor(clock))
        self._paces = {top: fastest, clock: current}  # worked out so far
        started = min(now, book.served_at) if book.prompts else now
        if not book.prompts:
            started += 0.5 * current.step  # the iteration that is under way, half of it on average
        elif due.tokens > chunk:
            started = max(started, now - current.full)
        self.start = started  # of the iteration that takes the first queued prompt, at the clock in force
        self.guard = 1.0 + instance.model_error
        self.switch = rules.switch if instance.switch is None else instance.switch
        self.full_chunks, self.credit = outlook.full_chunks, outlook.credit
        self.share = share = min(0.8, outlook.prompt_share)
        self.per_step = per_step = instance.tokens_per_step
        self.step_objective = Seconds(per_step * objectives.tpot)
        timed = objectives.e2e is not None
        self.stretches = within_reach(book, fastest, started, share, per_step) if timed else ()
        self.step_limit = _step_limit(self.step_objective, objectives.max_slowdown, fastest)
        self.crowd = crowd(load, outlook.short / per_step, crowded, current, now)

    def pace(self, clock: MegaHertz) -> Pace:
        found = self._paces.get(clock)
        if found is None:
            found = self._paces[clock] = Pace(self.model, self.load, clock, self.instance.factor(clock))
        return found


def _unknown(instance: Instance, rules: GovernorRules, now: Seconds) -> Decision | None:
    """The answer when something needed is missing: never lower on it."""
    if instance.model is None:
        return _default(instance, Reason.NO_MODEL, "no latency model, clocks stay at default", now)
    heard = instance.telemetry_at
    if heard is None or now - heard > rules.stale_after:
        age = "never heard of" if heard is None else f"last heard {now - heard:.1f} s ago"
        return _default(instance, Reason.STALE, f"agent {age}, clocks go to default", now)
    if instance.unseen:
        return _default(instance, Reason.STALE, "its metrics cannot be read, clocks go to default", now)
    return None


def _default(instance: Instance, reason: Reason, why: str, now: Seconds) -> Decision:
    return Decision(None, reason, instance.name, None, NO_ROOM, NO_ROOM, now, unknown=why)


def _step_limit(objective: Seconds, max_slowdown: float | None, fastest: Pace) -> float:
    """Seconds a decode step may take: the tightest TPOT of the pool, and the slowdown allowed."""
    if max_slowdown is None or fastest.step <= 0.0:
        return objective
    return min(objective, max_slowdown * fastest.step)


def _wanted(case: _Case, outlook: Outlook, rules: GovernorRules) -> tuple[MegaHertz, Reason]:
    """The clock that the laws ask for now, dwell aside."""
    clocks = case.model.clocks
    if rules.static_clock is not None:
        return clocks[min(len(clocks) - 1, bisect_left(clocks, rules.static_clock))], Reason.STATIC
    gauges = case.instance.gauges
    if gauges is not None and gauges.waiting > len(case.instance.book.prompts):
        return clocks[-1], Reason.SHARED
    if _overflows(case.instance):
        return clocks[-1], Reason.KV
    best = (clocks[0], Reason.IDLE)
    floor = (outlook.floor or clocks[-1]) if rules.floor else clocks[0]
    if case.instance.book.flights or case.load.decoding or case.due.tokens or outlook.floor is not None:
        best = (floor, Reason.LOAD)
    for reason, test in _TESTS.items():
        if test(case, best[0]):
            continue
        i = bisect_left(clocks, True, lo=bisect_left(clocks, best[0]), key=partial(test, case))
        if i == len(clocks):
            return clocks[-1], Reason.OVERLOAD
        best = (clocks[i], reason)
    return best


def _overflows(instance: Instance) -> bool:
    """Whether KV is projected beyond its capacity; worked out only where the sum of all promises is."""
    capacity = instance.limits.kv_capacity
    if capacity is None or instance.book.promised <= KV_SHARE * capacity:
        return False
    return peak_kv(instance.book) > KV_SHARE * capacity


def _steps_in_time(case: _Case, clock: MegaHertz) -> bool:
    """TPOT is a mean: a decode step, and the share of the time that prompts have taken of late."""
    guard = 1.0 if clock == case.model.clocks[-1] else case.guard
    return case.pace(clock).step * guard <= (1.0 - case.share) * case.step_objective


def _slowed_enough(case: _Case, clock: MegaHertz) -> bool:
    limit = case.objectives.max_slowdown
    return limit is None or case.pace(clock).step <= limit * case.fastest.step


def _prompts_in_time(case: _Case, clock: MegaHertz) -> bool:
    switching = case.switch if clock != case.instance.clock else 0.0
    return case.due.met(case.pace(clock), case.load.chunk, case.start + switching, case.guard)


def _leaves_room(case: _Case, clock: MegaHertz) -> bool:
    """An iteration cannot be interrupted: whoever comes while it reads prompts waits for its end.

    So it leaves a short prompt time to be read at maximum clock, or takes NEAR_BEST times as long as there at
    most. Without credit all that the engine has to read leaves that time, or is read as at maximum clock.
    """
    if not case.due.tokens:
        return True
    read, near = min(case.due.tokens, case.load.chunk), NEAR_BEST
    if not case.credit:
        read, near = max(read, case.instance.book.queued_tokens), 1.0
    limit = min(case.objectives.ttft) - case.fastest.iteration(min(SHORT_PROMPT, case.load.chunk))
    limit = max(limit, near * case.guard * case.fastest.prompts(read))
    return case.pace(clock).prompts(read) * case.guard <= limit


def _pauses_short(case: _Case, clock: MegaHertz) -> bool:
    """An iteration full of prompt tokens is a pause in every stream: at most STALL TPOT objectives long.

    Where they are so rare that the 99th percentile of pauses does not see them, they may be longer.
    """
    pace = case.pace(clock)
    if case.full_chunks * pace.step < STALL_SHARE:
        return True
    return pace.full * case.guard <= STALL * case.objectives.tpot


def _short_in_time(case: _Case, clock: MegaHertz) -> bool:
    return case.crowd is None or case.crowd.met(case.pace(clock), case.step_objective, case.guard)


def _ends_in_time(case: _Case, clock: MegaHertz) -> bool:
    return ends_met(case.stretches, case.pace(clock), case.start, case.guard, case.share)


_TESTS = {
    Reason.TPOT: _steps_in_time,
    Reason.SLOWDOWN: _slowed_enough,
    Reason.TTFT: _prompts_in_time,
    Reason.E2E: _ends_in_time,
    Reason.ROOM: _leaves_room,
    Reason.CROWD: _short_in_time,
    Reason.STALL: _pauses_short,
}


def _paced(wanted: MegaHertz, memory: Memory, rules: GovernorRules, now: Seconds) -> tuple[MegaHertz, Memory]:
    """Up at once; down to the highest clock wanted within the last `dwell`, not too often."""
    peaks: Sequence[tuple[float, MegaHertz]] = memory.peaks
    kept = tuple(p for p in peaks if now - p[0] <= rules.dwell and p[1] > wanted)
    kept = (*kept, (now, wanted))
    level = kept[0][1]
    if memory.clock is None or level > memory.clock:
        return level, Memory(level, memory.lowered_at, kept)
    if level == memory.clock or now - memory.lowered_at < rules.lowering_interval:
        return memory.clock, Memory(memory.clock, memory.lowered_at, kept)
    return level, Memory(level, now, kept)


def _decision(case: _Case, clock: MegaHertz, reason: Reason) -> Decision:
    pace = case.pace(clock)
    at_clock = _room(case, pace)
    at_max = at_clock if pace is case.fastest else _room(case, case.fastest)
    rate, running, waiting = case.load.chunk / pace.full, int(case.load.decoding), int(case.due.tokens)
    name, expected, aim = case.instance.name, Seconds(pace.step / case.per_step), case.objectives.tpot
    return Decision(clock, reason, name, expected, at_clock, at_max, case.now, rate, running, waiting, aim)


def _room(case: _Case, pace: Pace) -> Room:
    """How many sequences and prompt tokens this instance may have at this pace."""
    load, most = case.load, case.instance.slots
    each = load.context / load.decoding if load.decoding else 0.0
    limit = case.step_limit / case.guard
    full = pace.of(most, most * each)
    decoding = most
    if full > limit:  # iteration time is convex in the batch: the chord over-states it in between
        more = (most - load.decoding) * (limit - pace.step) / (full - pace.step) if limit > pace.step else 0.0
        decoding = int(load.decoding + more)
    left = min(case.objectives.ttft) / case.guard - pace.step
    tokens = load.chunk * left / max(1e-9, pace.full)
    return Room(decoding, max(0.0, tokens), case.now)


_BECAUSE = {
    Reason.TTFT: "slowest at which every queued prompt is answered in time",
    Reason.TPOT: "slowest that keeps TPOT",
    Reason.E2E: "slowest at which every request ends in time",
    Reason.ROOM: "slowest that leaves room for a prompt that comes while others are read",
    Reason.CROWD: "slowest at which prompts leave short answers their TPOT",
    Reason.STALL: "slowest at which prompts do not stall the streams",
    Reason.SLOWDOWN: "slowest within max_slowdown",
    Reason.LOAD: "least energy for this load",
    Reason.IDLE: "nothing to do",
    Reason.DWELL: "not lowered yet, a higher clock was needed a moment ago",
    Reason.OVERLOAD: "an objective is out of reach even at maximum clock",
    Reason.KV: "the KV cache will be full before the batch drains",
    Reason.SHARED: "the engine queues requests of others",
    Reason.STATIC: "static mode",
}
