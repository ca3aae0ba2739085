"""Pure: what `joulegate simulate` says about a scenario: one JSON document, one table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from joulegate.domain import Size
from simulator.results import Pooled, joules_per_token, saving_ci, saving_pct, why_not
from simulator.scenario import Bench

KWH = 3.6e6  # joules


@dataclass(frozen=True, slots=True)
class Comparison:
    """A scenario on one profile, done. `swapped`: learned and scored on the other halves."""

    bench: Bench
    profile: str
    policies: Mapping[str, Pooled]
    swapped: Mapping[str, Pooled] | None


def document(result: Comparison, wall: float) -> dict[str, Any]:
    """All figures, simulated; energy is GPU board energy of the scored halves, summed over seeds."""
    baseline = result.policies["max-clock"]
    bench = result.bench
    return {
        "scenario": bench.name,
        "profile": result.profile,
        "simulated": True,
        "objectives": _objectives(bench),
        "scale": round(bench.factor, 5),
        "sustainable_per_s": None if bench.sustained is None else round(bench.sustained.rate, 4),
        "seeds": len(bench.cases),
        "seeds_asked": bench.asked,
        "requests": baseline.score.requests,
        "wall_s": round(wall, 2),
        "baseline": "max-clock",
        "policies": [_policy(name, result) for name in result.policies],
    }


def _objectives(bench: Bench) -> dict[str, Any]:
    aims = bench.objectives
    if aims.e2e is not None:
        return {"tpot_s": aims.tpot, "e2e_s": round(aims.e2e, 3)}
    return {"ttft_s": list(aims.ttft), "tpot_s": aims.tpot}


def _policy(name: str, result: Comparison) -> dict[str, Any]:
    policy, baseline = result.policies[name], result.policies["max-clock"]
    static = result.policies.get("static-best")
    interval = saving_ci(policy, baseline)
    reasons = why_not(policy, baseline)
    saving = saving_pct(policy, baseline)
    return {
        "name": name,
        "energy_kwh_released": policy.joules() / KWH,
        "energy_kwh_owned": policy.joules(owned=True) / KWH,
        "saving_pct_released": saving,
        "saving_pct_owned": saving_pct(policy, baseline, owned=True),
        "saving_ci_pct": None if interval is None else list(interval),
        "saving_over_static_points": None if static is None else saving - saving_pct(static, baseline),
        "attainment_pct": policy.attainment(),
        "attainment_tokens_pct": policy.attainment_tokens(),
        "attainment_5x_pct": policy.attainment_5x(),
        "slowdown_p50_e2e": policy.median_e2e() / baseline.median_e2e(),
        "ttft_p99_s": {size.name: policy.ttft_p99(size) for size in Size},
        "tpot_p99_s": policy.p99("tpot"),
        "itl_p99_s": policy.itl_p99(),
        "e2e_p99_s": policy.p99("e2e"),
        "gpus_avg": float(np.mean([run.gpus_avg for run in policy.runs])),
        "clock_changes_per_min": 60.0 * _total(policy, "clock_changes") / _total(policy, "span"),
        "j_per_output_token": joules_per_token(policy),
        "j_per_total_token": policy.joules() / max(1, policy.total_tokens),
        "worst_seed_saving_pct": min(_by_seed(policy, baseline)),
        "counts": not reasons,
        "why_not": reasons,
        "swapped": None if result.swapped is None else _swapped(name, result.swapped),
    }


def _swapped(name: str, halves: Mapping[str, Pooled]) -> dict[str, Any]:
    policy, baseline = halves[name], halves["max-clock"]
    reasons = why_not(policy, baseline)
    return {
        "saving_pct_released": saving_pct(policy, baseline),
        "slowdown_p50_e2e": policy.median_e2e() / baseline.median_e2e(),
        "counts": not reasons,
        "why_not": reasons,
    }


def _by_seed(policy: Pooled, baseline: Pooled) -> list[float]:
    return [
        saving_pct(Pooled((one,)), Pooled((other,)))
        for one, other in zip(policy.runs, baseline.runs, strict=True)
    ]


def _total(policy: Pooled, name: str) -> float:
    return float(sum(getattr(run, name) for run in policy.runs))


HEAD = (
    "policy",
    "saved %",
    "95 %",
    "worst seed",
    "swapped",
    "counts",
    "slowdown",
    "attained %",
    "TTFT p99 S/M/L ms",
    "TPOT p99",
    "changes/min",
)


def table(made: Mapping[str, Any]) -> str:
    """The document as a person reads it."""
    rows = [HEAD, *(_row(policy) for policy in made["policies"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([f"{made['scenario']} on {made['profile']}: {terms(made)}", *lines, *notes(made)])


def terms(made: Mapping[str, Any]) -> str:
    """What was compared."""
    few = f" (the rule asks for {made['seeds_asked']})" if made["seeds"] < made["seeds_asked"] else ""
    seeds = f"{made['seeds']} seed{'s' if made['seeds'] > 1 else ''}{few}"
    return f"{made['requests']} requests, {seeds}, {made['scale']} x trace, simulated"


def notes(made: Mapping[str, Any]) -> list[str]:
    """Why a saving does not count."""
    found = []
    for policy in made["policies"]:
        found += [f"{policy['name']}: {reason}" for reason in policy["why_not"]]
        halves = policy["swapped"] or {"why_not": ()}
        found += [f"{policy['name']}, halves swapped: {reason}" for reason in halves["why_not"]]
    return found


def _row(policy: Mapping[str, Any]) -> tuple[str, ...]:
    interval = policy["saving_ci_pct"]
    return (
        policy["name"],
        f"{policy['saving_pct_released']:.1f}",
        "" if interval is None else f"{interval[0]:.1f}..{interval[1]:.1f}",
        f"{policy['worst_seed_saving_pct']:.1f}",
        other_half(policy),
        "yes" if policy["counts"] else "no",
        f"{policy['slowdown_p50_e2e']:.2f}",
        f"{policy['attainment_pct']:.2f}",
        first_tokens(policy),
        f"{policy['tpot_p99_s'] * 1e3:.0f} ms",
        f"{policy['clock_changes_per_min']:.0f}",
    )


def other_half(policy: Mapping[str, Any]) -> str:
    """What is saved with the halves swapped; empty: not run."""
    halves = policy["swapped"]
    if halves is None:
        return ""
    return f"{halves['saving_pct_released']:.1f}" + ("" if halves["counts"] else " (no)")


def first_tokens(policy: Mapping[str, Any]) -> str:
    """P99 of TTFT by input size, ms."""
    ttft = policy["ttft_p99_s"]
    return "/".join("-" if ttft[size.name] is None else f"{ttft[size.name] * 1e3:.0f}" for size in Size)
