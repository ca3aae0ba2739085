"""Pure: types of requests, kinds of instance, so many GPUs: as a mixed-integer program, and greedily.

Theory of operation (papers §1.4). For every type of request and kind of instance a few *configurations* are
kept, each with the load one instance carries and the watts it draws then: those that no other beats in both
(`pareto`). The program picks how many instances run each configuration of each type:

    minimise   sum watts n
    subject to sum over configurations of a type: load n >= demand of the type
               sum tp n <= GPUs
               n whole, not negative

The clock is part of a configuration, not a variable: with about ten per type and tensor parallelism the
program stays small enough to solve in half a second for 1,000 GPUs. `greedy` needs no solver: it covers
each type with its cheapest configuration per request and then replaces the last instance by a smaller one;
it is the fallback and the check. Solving is the caller's business (`scipy.optimize.milp`, in a child
process): `Program` has its arrays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Configuration:
    """One instance serving one type at one clock, as loaded as its objectives allow."""

    kind: str
    tp: int
    load: float  # requests per second
    watts: float  # of the instance


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """minimise cost @ n, lower <= matrix @ n, one row a type and the last for GPUs (negated)."""

    cost: Floats
    matrix: Floats
    lower: Floats
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

    def load(self, type_: str) -> float:
        return sum(c.load * n for name, c, n in self.counts if name == type_)


def pareto(configurations: Sequence[Configuration]) -> tuple[Configuration, ...]:
    """Those that no other of the same tp beats in load and watts, lightest first."""
    kept: list[Configuration] = []
    for tp in sorted({c.tp for c in configurations}):
        least = float("inf")
        same = sorted((c for c in configurations if c.tp == tp), key=lambda c: (-c.load, c.watts))
        for one in same:
            if one.watts < least:
                least = one.watts
                kept.append(one)
    return tuple(sorted(kept, key=lambda c: c.load))


def program(
    demands: Mapping[str, float], options: Mapping[str, Sequence[Configuration]], gpus: int
) -> Program:
    """The arrays of the program. Types without demand have no columns."""
    types = [name for name, rate in demands.items() if rate > 0.0]
    columns = tuple((name, c) for name in types for c in pareto(options[name]))
    matrix = np.zeros((len(types) + 1, len(columns)))
    for j, (name, c) in enumerate(columns):
        matrix[types.index(name), j] = c.load
        matrix[-1, j] = -c.tp
    lower = np.array([*(demands[name] for name in types), -float(gpus)])
    return Program(np.array([c.watts for _, c in columns]), matrix, lower, columns)


def plan_of(made: Program, counts: Floats) -> Plan:
    """A solution read back; counts are rounded to whole instances."""
    whole = np.rint(counts).astype(int)
    return Plan(tuple((name, c, int(n)) for (name, c), n in zip(made.columns, whole, strict=True) if n))


def greedy(
    demands: Mapping[str, float], options: Mapping[str, Sequence[Configuration]], gpus: int
) -> Plan | None:
    """Each type by its cheapest configuration per request, the remainder by the cheapest that carries it.

    None if that takes more GPUs than there are.
    """
    counts: list[tuple[str, Configuration, int]] = []
    for name, rate in demands.items():
        if rate <= 0.0:
            continue
        kept = pareto(options[name])
        if not kept:
            return None
        best = min(kept, key=lambda c: (c.watts / c.load, c.tp))
        whole = int(rate / best.load)
        left = rate - whole * best.load
        if whole:
            counts.append((name, best, whole))
        if left > 1e-9 * rate:
            counts += _remainder(name, left, best, kept)
    made = Plan(tuple(counts))
    return made if made.gpus <= gpus else None


def _remainder(
    name: str, left: float, best: Configuration, kept: Sequence[Configuration]
) -> list[tuple[str, Configuration, int]]:
    last = min((c for c in kept if c.load >= left), key=lambda c: (c.watts, c.tp), default=best)
    return [(name, last, 1)]
