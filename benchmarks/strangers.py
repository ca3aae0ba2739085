"""Shell: `joulegate simulate`'s own policies on engines and traces that they were not made for.

Every engine is one of `configs/profiles` with some coefficients scaled, other clocks, limits or another
power curve; every trace is one of `configs/traces` with other lengths or burstier arrivals. The load level is
worked out anew for each (`simulator.scenario`), nothing else is tuned. Simulated; learned on the first half,
scored on the second by the counting rule; beside it the best fixed clock, chosen on the first half too.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from joulegate.engine_profile import EngineProfile
from joulegate.settings.load import load
from joulegate.settings.scenario import Scenario
from joulegate.units import MegaHertz
from simulator import scenario as scenarios
from simulator.cluster import Setup
from simulator.costs import EngineCosts
from simulator.recipe import Recipe
from simulator.results import Pooled, Run, saving_pct, why_not
from simulator.simulate import read_profile
from simulator.spool import read_load
from simulator.workload import Ints, Load

ROOT = Path(__file__).parent.parent
A100, H100 = "a100-40g_llama-3.1-8b_tp1", "h100_llama-3.1-8b_tp1"
CONVERSATION, CODE = "azure2023_conv", "azure2023_code"
POLICIES = ("static-best", "joulegate", "joulegate-slowdown")
Factors = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Stranger:
    """An engine and a trace; factors by the names of the profile's fields."""

    name: str
    profile: str
    trace: str = CONVERSATION
    clocks: range | None = None  # MHz
    latency: Factors = field(default_factory=dict)
    power: Factors = field(default_factory=dict)
    values: Factors = field(default_factory=dict)  # of the power curve: shares, not factors
    limits: Factors = field(default_factory=dict)
    lengths: tuple[float, float] = (1.0, 1.0)  # times prompt and output tokens
    bursts: float = 0.0  # share of each minute at whose start everything of it arrives; 0: as in the trace


MEMORY, HOST = ("m0_s", "m1_s_per_ctx_token"), ("c0_s", "h0_s", "h1_s_per_seq")
COMPUTE = ("c1_s_per_seq", "pc1_s_per_token", "pc2_s_per_token2")


def _times(memory: float, compute: float, host: float = 1.0) -> Factors:
    """Factors of an engine's seconds."""
    rows = ((MEMORY, memory), (COMPUTE, compute), (HOST, host))
    return {name: factor for names, factor in rows for name in names}


STRANGERS = (
    Stranger(
        "clocks 210..2520 MHz in steps of 90, 0.6 times as slow",
        A100,
        clocks=range(210, 2521, 90),
        latency=_times(0.6, 0.6, 0.6),
    ),
    Stranger(
        "little bandwidth, 350 W, cache of 60k tokens (like an L40S)",
        A100,
        clocks=range(210, 2521, 15),
        latency=_times(1.8, 0.9, 0.6),
        power={"tdp_w": 1.4, "d0_w": 1.5, "p_idle_w": 0.6},
        limits={"kv_capacity_tokens": 0.38},
    ),
    Stranger(
        "much bandwidth, cache of 700k tokens (like an H200)",
        H100,
        latency=_times(0.7, 1.0),
        limits={"kv_capacity_tokens": 1.6},
    ),
    Stranger(
        "clocks 500..2100 MHz in steps of 100, slow host, 140 W idle (like an MI300X)",
        H100,
        clocks=range(500, 2101, 100),
        latency=_times(0.75, 0.8, 1.8),
        power={"p_idle_w": 2.0, "p_static_w": 1.5, "tdp_w": 1.07},
        values={"vmin": 0.85, "knee": 0.5},
        limits={"kv_capacity_tokens": 2.5},
    ),
    Stranger("power hardly falls with the clock", A100, values={"s_fixed_share": 0.6}),
    Stranger(
        "cache of 24k tokens, 48 sequences", A100, limits={"kv_capacity_tokens": 0.15, "max_num_seqs": 0.19}
    ),
    Stranger("1.8 times as slow", A100, latency=_times(1.8, 1.8, 1.8)),
    Stranger("TP4, 70B", "h100_llama-3.1-70b_tp4"),
    Stranger("H100, low curve", f"{H100}_shape-low"),
    Stranger("H100, high curve", f"{H100}_shape-high"),
    Stranger("answers three times as long", A100, lengths=(1.0, 3.0)),
    Stranger("prompts three times as long", H100, lengths=(3.0, 1.0)),
    Stranger("each minute's requests in its first 20 s", A100, bursts=1.0 / 3.0),
    Stranger("code", A100, trace=CODE),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One policy on one stranger."""

    stranger: str
    objectives: str
    policy: str
    saving_pct: float
    slowdown_p50_e2e: float
    attainment_pct: float
    baseline_attainment_pct: float
    why_not: list[str]


def engine(stranger: Stranger) -> EngineProfile:
    known = read_profile(ROOT / f"configs/profiles/{stranger.profile}.json")
    latency = {name: getattr(known.latency, name) * factor for name, factor in stranger.latency.items()}
    power = {name: getattr(known.power, name) * factor for name, factor in stranger.power.items()}
    limits = {name: round(getattr(known.engine, name) * factor) for name, factor in stranger.limits.items()}
    clocks = known.clocks if stranger.clocks is None else tuple(MegaHertz(mhz) for mhz in stranger.clocks)
    return replace(
        known,
        clocks=clocks,
        max_clock=clocks[-1],
        latency=replace(known.latency, **latency),
        power=replace(known.power, **power, **stranger.values),
        engine=replace(known.engine, **limits),
    )


def arrivals(stranger: Stranger) -> Load:
    known = read_load(ROOT / f"configs/traces/{stranger.trace}.csv.gz")
    at = known.at
    if stranger.bursts:
        minute = np.floor(at / 60.0) * 60.0
        at = minute + (at - minute) * stranger.bursts
    prompt, answer = stranger.lengths
    return Load(at, _longer(known.input, prompt), _longer(known.output, answer), known.span)


def _longer(tokens: Ints, times: float) -> Ints:
    longer: Ints = np.maximum(1, np.rint(tokens * times)).astype(np.int64)
    return longer


def measure(stranger: Stranger, objectives: str, seeds: int) -> list[Row]:
    base = load(ROOT / "configs/scenarios/s1-d.yaml", Scenario)
    settings = base.model_copy(update={"objectives": objectives, "policies": POLICIES})
    setup = Setup((EngineCosts(engine(stranger)),), scenarios.objectives_of(settings))
    bench = scenarios.prepare(settings, Recipe(arrivals(stranger)), setup, (), seeds)
    done = scenarios.compare(bench, POLICIES, _one_by_one)
    baseline = done["max-clock"]
    return [_row(stranger.name, objectives, name, done[name], baseline) for name in POLICIES]


def _one_by_one(function: Callable[..., Run], work: Sequence[tuple[object, ...]]) -> list[Run]:
    return [function(*arguments) for arguments in work]


def _row(stranger: str, objectives: str, name: str, policy: Pooled, baseline: Pooled) -> Row:
    return Row(
        stranger=stranger,
        objectives=objectives,
        policy=name,
        saving_pct=saving_pct(policy, baseline),
        slowdown_p50_e2e=policy.median_e2e() / baseline.median_e2e(),
        attainment_pct=policy.attainment(),
        baseline_attainment_pct=baseline.attainment(),
        why_not=why_not(policy, baseline),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench strangers", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="those whose name has this in it")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chosen = [one for one in STRANGERS if options.only in one.name]
    work = [(one, objectives) for one in chosen for objectives in ("D", "T")]
    rows: list[Row] = []
    for one, objectives in track(work, console=Console(stderr=True)):
        rows += measure(one, objectives, options.seeds)
        if options.json is not None:
            options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))
    show(rows, options.seeds)


def show(rows: list[Row], seeds: int) -> None:
    table = Table(title=f"{seeds} seeds, second half, against maximum clock (simulated)")
    for title in (
        "engine or trace",
        "",
        "policy",
        "saved %",
        "median E2E",
        "attainment %",
        "does not count for",
    ):
        table.add_column(title)
    for row in rows:
        table.add_row(
            row.stranger,
            row.objectives,
            row.policy,
            f"{row.saving_pct:.1f}",
            f"{row.slowdown_p50_e2e:.2f} x",
            f"{row.attainment_pct:.2f} / {row.baseline_attainment_pct:.2f}",
            "; ".join(row.why_not),
        )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
