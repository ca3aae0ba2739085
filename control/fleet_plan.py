"""Pure: types of requests, kinds of instance, so many GPUs: as a mixed-integer program, and greedily.

Theory of operation (papers §1.4). For every type of request and kind of instance a few *configurations* are
kept, each with the load one instance carries and the watts it draws then: those that no other beats in both
(`pareto`). The program picks how many instances n run each configuration of each type, and with that how
many instances of a kind are started (s) and stopped (e):

    minimise   sum watts n + sum (start s + stop e) / epoch
    subject to sum over configurations of a type: load n >= demand of the type
               sum over a kind: n - s + e = running
               sum tp n <= GPUs,  sum n >= least,  sum over a kind: n <= most
               n whole, not negative

`start` is the energy of a start, `stop` that of prefilling again the sessions that a stopped instance held.
The load is part of a configuration, not a variable: with about ten per type and tensor parallelism the
program stays small enough for 1,000 GPUs. `greedy` needs no solver: it covers each type with its cheapest
configuration per request and then replaces the last instance by a smaller one; where that takes too many
GPUs, a price per GPU is raised until it does not. It is the first answer, the fallback and the check.
Solving is the caller's business (`control.fleet_solver`, in a child process).
Missing input: where a type has demand and no configuration, or the GPUs are too few, there is no plan (None).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PRICES = 40  # steps of the bisection over the price of a GPU


@dataclass(frozen=True, slots=True)
class Configuration:
    """One instance serving so much of one type."""

    kind: str
    tp: int
    load: float  # requests per second
    watts: float  # of the instance


@dataclass(frozen=True, slots=True)
class Fleet:
    """What there is and what changing it costs."""

    gpus: int
    running: Mapping[str, int] = field(default_factory=dict)  # instances by kind
    start_joules: Mapping[str, float] = field(default_factory=dict)  # one start of a kind
    stop_joules: Mapping[str, float] = field(default_factory=dict)  # sessions of one instance prefilled again
    epoch: float = 300.0  # seconds that a change pays back in
    least: int = 1  # instances that stay warm
    most: Mapping[str, int] = field(default_factory=dict)  # instances of a kind; not in it: any number


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """minimise cost @ x, lower <= matrix @ x <= upper; x: counts of `columns`, then starts, then stops."""

    cost: Floats
    matrix: Floats
    lower: Floats
    upper: Floats
    columns: tuple[tuple[str, Configuration], ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How many instances of each configuration serve each type."""

    counts: tuple[tuple[str, Configuration, int], ...]

    @property
    def watts(self) -> float:
        return sum(c.watts * n for _, c, n in self.counts)

    @property
    def gpus(self) -> int:
        return sum(c.tp * n for _, c, n in self.counts)

    def by_kind(self) -> dict[str, int]:
        """Instances of each kind."""
        kinds: dict[str, int] = {}
        for _, c, n in self.counts:
            kinds[c.kind] = kinds.get(c.kind, 0) + n
        return kinds

    def load(self, type_: str) -> float:
        return sum(c.load * n for name, c, n in self.counts if name == type_)


def pareto(configurations: Sequence[Configuration]) -> tuple[Configuration, ...]:
    """Those that no other of the same kind beats in load and watts, lightest first."""
    kept: list[Configuration] = []
    for kind in sorted({(c.kind, c.tp) for c in configurations}):
        least = float("inf")
        same = sorted((c for c in configurations if (c.kind, c.tp) == kind), key=lambda c: (-c.load, c.watts))
        for one in same:
            if one.watts < least:
                least = one.watts
                kept.append(one)
    return tuple(sorted(kept, key=lambda c: c.load))


def program(
    demands: Mapping[str, float], options: Mapping[str, Sequence[Configuration]], fleet: Fleet
) -> Program:
    """The arrays of the program. Types without demand have no columns."""
    types = [name for name, rate in demands.items() if rate > 0.0]
    columns = tuple((name, c) for name in types for c in pareto(options[name]))
    kinds = sorted({c.kind for _, c in columns} | set(fleet.running))
    wide = len(columns) + 2 * len(kinds)
    serve, moves, sums = np.zeros((len(types), wide)), np.zeros((len(kinds), wide)), np.zeros((2, wide))
    for j, (name, c) in enumerate(columns):
        serve[types.index(name), j] = c.load
        moves[kinds.index(c.kind), j] = 1.0
        sums[:, j] = c.tp, 1.0
    for i in range(len(kinds)):
        moves[i, len(columns) + i], moves[i, len(columns) + len(kinds) + i] = -1.0, 1.0
    running = [float(fleet.running.get(kind, 0)) for kind in kinds]
    most = [float(fleet.most.get(kind, np.inf)) for kind in kinds]
    there = np.where(np.arange(wide) < len(columns), moves, 0.0)
    return Program(
        np.array([c.watts for _, c in columns] + _move_costs(kinds, fleet)),
        np.vstack([serve, moves, sums, there]),
        np.array(
            [*(demands[name] for name in types), *running, 0.0, float(fleet.least), *[0.0] * len(kinds)]
        ),
        np.array([np.inf] * len(types) + [*running, float(fleet.gpus), np.inf, *most]),
        columns,
    )


def _move_costs(kinds: Sequence[str], fleet: Fleet) -> list[float]:
    """Watts, over one epoch, of each start and then of each stop."""
    both = (fleet.start_joules, fleet.stop_joules)
    return [costs.get(kind, 0.0) / fleet.epoch for costs in both for kind in kinds]


def total_watts(plan: Plan, fleet: Fleet) -> float:
    """What the program minimises: of the instances, and of getting there within an epoch."""
    have = plan.by_kind()
    kinds = sorted(set(have) | set(fleet.running))
    change = [have.get(kind, 0) - fleet.running.get(kind, 0) for kind in kinds]
    moves = [max(0, n) for n in change] + [max(0, -n) for n in change]
    return plan.watts + sum(n * cost for n, cost in zip(moves, _move_costs(kinds, fleet), strict=True))


def plan_of(made: Program, counts: Sequence[float] | Floats) -> Plan:
    """A solution read back; counts are rounded to whole instances."""
    whole = np.rint(counts[: len(made.columns)]).astype(int)
    return Plan(tuple((name, c, int(n)) for (name, c), n in zip(made.columns, whole, strict=True) if n))


def greedy(
    demands: Mapping[str, float], options: Mapping[str, Sequence[Configuration]], fleet: Fleet
) -> Plan | None:
    """Each type by its cheapest configuration per request, the remainder by the cheapest that carries it.

    None if that takes more GPUs, or more instances of a kind, than there are, however dear a GPU is.
    """
    plan, fits = _covered(demands, options, fleet.least, 0.0), None
    if plan is None:
        return None
    if _is_there(plan, fleet):
        return plan
    low, high = 0.0, 1e5  # watts that a GPU is taken to cost
    for _ in range(PRICES):
        middle = 0.5 * (low + high) if low else 1e-2 * high
        plan = _covered(demands, options, fleet.least, middle)
        if plan is not None and _is_there(plan, fleet):
            high, fits = middle, plan
        else:
            low = middle
    return fits


def _is_there(plan: Plan, fleet: Fleet) -> bool:
    enough = all(n <= fleet.most.get(kind, n) for kind, n in plan.by_kind().items())
    return enough and plan.gpus <= fleet.gpus


def _covered(
    demands: Mapping[str, float],
    options: Mapping[str, Sequence[Configuration]],
    least: int,
    gpu_price: float,
) -> Plan | None:
    counts: list[tuple[str, Configuration, int]] = []

    def dear(c: Configuration) -> float:
        return c.watts + gpu_price * c.tp

    for name, rate in demands.items():
        if rate <= 0.0:
            continue
        kept = pareto(options[name])
        if not kept:
            return None
        best = min(kept, key=lambda c: (dear(c) / c.load, c.tp))
        whole = int(rate / best.load)
        left = rate - whole * best.load
        if whole:
            counts.append((name, best, whole))
        if left > 1e-9 * rate:
            carries = (c for c in kept if c.load >= left)
            counts.append((name, min(carries, key=lambda c: (dear(c), c.tp), default=best), 1))
    if counts and (missing := least - sum(n for _, _, n in counts)) > 0:
        name, coldest = min(((name, c) for name, c, _ in counts), key=lambda one: dear(one[1]))
        counts.append((name, coldest, missing))
    return Plan(tuple(counts))
