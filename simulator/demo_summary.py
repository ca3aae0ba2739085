"""Pure: what the demo found: both fleets on the same arrivals, and whether a saving may be claimed.

A saving is printed only if it was earned: the same tokens served, objectives kept as well as at default
clocks, and an emulator that was in time. Otherwise the reason is printed instead.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulator.demo_static import StaticClock

MAX_TOKENS_APART = 0.005  # share by which served tokens may differ
MAX_ATTAINMENT_APART = 0.5  # points
MAX_LATENESS_MS = 5.0  # p99 of the emulator
CLASSES = ("S", "M", "L")


@dataclass(frozen=True, slots=True)
class SideResult:
    """One fleet's run. `replay`: the load generator's summary of it."""

    replay: Mapping[str, Any]
    joules: float
    lateness_ms: float  # p99 of the emulator
    clock_changes: int
    residency: Mapping[int, float]  # clock in MHz -> share of GPU time


@dataclass(frozen=True, slots=True)
class DemoResult:
    joulegate: SideResult
    default: SideResult
    static: StaticClock
    seconds: float
    client_streams: int  # of the openai client, both sides
    client_errors: int

    @property
    def why_not(self) -> str:
        """Why no saving is claimed; "" when one is."""
        ours, theirs = self.joulegate.replay, self.default.replay
        served, expected = ours["output_tokens"], theirs["output_tokens"]
        if not expected or not served:
            return "no tokens were served"
        late = max(self.joulegate.lateness_ms, self.default.lateness_ms)
        if late > MAX_LATENESS_MS:
            return (
                f"the emulator was late (p99 {late:.1f} ms, limit {MAX_LATENESS_MS:g} ms): this machine is "
                "too busy for a fair run"
            )
        apart = abs(served - expected) / expected
        if apart > MAX_TOKENS_APART:
            return f"the fleets served different work: {served} and {expected} tokens"
        lost = total_attainment(theirs) - total_attainment(ours)
        if abs(lost) > MAX_ATTAINMENT_APART:
            return f"attainment differs by {abs(lost):.2f} points (limit {MAX_ATTAINMENT_APART:g})"
        return ""

    @property
    def saved_pct(self) -> float | None:
        """Energy saved against default clocks; None if it may not be claimed."""
        if self.why_not or self.default.joules <= 0:
            return None
        return 100.0 * (1.0 - self.joulegate.joules / self.default.joules)

    def document(self) -> dict[str, Any]:
        """The demo's JSON."""
        ours, theirs = self.joulegate, self.default
        return {
            "requests": ours.replay["requests"],
            "errors": ours.replay["errors"] + theirs.replay["errors"] + self.client_errors,
            "attainment": {
                "joulegate": dict(ours.replay["attainment_pct"]),
                "default_clocks": dict(theirs.replay["attainment_pct"]),
            },
            "joules": ours.joules,
            "joules_default_clocks": theirs.joules,
            "saved_pct": self.saved_pct,
            "why_not": self.why_not,
            "simulated": True,
            "clock_changes": ours.clock_changes,
            "lateness_ms_p99": max(ours.lateness_ms, theirs.lateness_ms),
            "output_tokens": ours.replay["output_tokens"],
            "output_tokens_default_clocks": theirs.replay["output_tokens"],
            "clock_residency": {str(clock): share for clock, share in sorted(ours.residency.items())},
            "static_clock": {
                "clock_mhz": self.static.clock,
                "saved_pct": 100.0 * self.static.saved_ratio,
                "attainment_pct": 100.0 * self.static.attainment_ratio,
            },
            "client_streams": self.client_streams,
            "seconds": self.seconds,
        }


def total_attainment(replay: Mapping[str, Any]) -> float:
    """Percent of all requests."""
    return float(replay["attainment_pct"]["all"] or 0.0)


def residency(samples: Mapping[int, int]) -> dict[int, float]:
    """Clock in MHz -> share of the samples."""
    total = sum(samples.values())
    return {clock: count / total for clock, count in sorted(samples.items())} if total else {}


def bands(shares: Mapping[int, float], width: int = 150) -> dict[str, float]:
    """Residency in bands of `width` MHz, for people."""
    found: Counter[int] = Counter()
    for clock, share in shares.items():
        found[clock // width * width] += share  # type: ignore[assignment]
    return {f"{low}-{low + width - 1}": share for low, share in sorted(found.items())}


def lines(result: DemoResult) -> list[str]:
    """The summary for a terminal, in rich's markup."""
    ours, theirs = result.joulegate, result.default
    out = [
        f"requests {ours.replay['requests']} to each fleet over {result.seconds:.0f} s, errors "
        f"{ours.replay['errors']} under Joulegate, {theirs.replay['errors']} at default clocks; "
        f"openai client: {result.client_streams} streams, {result.client_errors} errors",
        _attainment("under Joulegate", ours.replay),
        _attainment("default clocks ", theirs.replay),
        f"energy     {ours.joules:,.0f} J under Joulegate, {theirs.joules:,.0f} J at default clocks",
    ]
    if result.saved_pct is None:
        out.append(f"[bold red]no saving is claimed:[/] {result.why_not}")
    else:
        out.append(f"[bold green]saved {result.saved_pct:.1f} % of GPU energy (simulated)[/]")
    static = result.static
    out.append(
        f"beside it  best static clock, chosen in hindsight: {static.clock} MHz would have saved "
        f"{100 * static.saved_ratio:.1f} % (computed on the same arrivals)"
    )
    shares = ", ".join(f"{band} MHz {100 * share:.0f} %" for band, share in bands(ours.residency).items())
    out.append(f"clocks     {shares}; {ours.clock_changes} changes of target")
    return out


def _attainment(name: str, replay: Mapping[str, Any]) -> str:
    met = replay["attainment_pct"]
    cells = " ".join(f"{c} {met[c]:.1f} %" for c in (*CLASSES, "all") if met.get(c) is not None)
    return f"objectives met, {name}: {cells}"
