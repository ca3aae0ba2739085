"""Shell: is what is simulated what runs? The same minutes of a scenario in real time and in simulated time.

    scripts/bench live [--scenario configs/scenarios/s1-t.yaml] [--minutes 10] [--json FILE]

Live: arrivals at their instants to a gateway in `enforce` over an emulated engine and its agent, and the same
arrivals to an engine of the same kind at maximum clock, without a gateway. Simulated: the policy `joulegate`
and `max-clock` on the same arrivals. Both know nothing at their start but the engine's profile; the GPU is
proven before the first arrival. Energy is counted from the first arrival over the same seconds everywhere.
Exit code 1 where savings differ by more than 3 points or attainment by more than half a point.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.live_site import Site, standing
from control.admission import AdmissionRules
from control.governor import GovernorRules
from joulegate.arrivals import Arrival
from joulegate.domain import Cuts, Objectives
from joulegate.engine_profile import EngineProfile
from joulegate.errors import UserError
from joulegate.settings.load import load
from joulegate.settings.scenario import Scenario
from joulegate.units import MegaHertz, Seconds
from predictor.length import HistoryPredictor
from simulator import scenario as scenarios
from simulator.cluster import Cluster, Knowledge, Laws, Setup, run_fixed
from simulator.costs import EngineCosts
from simulator.loadgen import Sender, Target, finish, play
from simulator.real_time import go_first
from simulator.replay_report import Engine, Tally, attainment
from simulator.results import Pooled, Run
from simulator.simulate import read_profile, recipe_of
from simulator.workload import Load, held

ROOT = Path(__file__).parent.parent
SAVING_POINTS, ATTAINMENT_POINTS = 3.0, 0.5  # how far apart live and simulated may be
MAX_LATENESS_MS = 5.0  # p99 of the emulator: beyond it nothing is said about objectives
SHORTEST_PROMPT = 10  # tokens; the load generator makes none below
PATIENCE = 60.0  # seconds without a byte after which the rest counts as lost
LOOK_EVERY = 0.1  # seconds between two looks at the clock


@dataclass(frozen=True, slots=True)
class Plan:
    """What is played: the scored half of a scenario's first seed, from its start."""

    scenario: str
    profile_file: Path
    profile: EngineProfile
    objectives: Objectives
    arrivals: Load
    perturb: bool  # the live engines are off their profile by up to 10 %


@dataclass(frozen=True, slots=True)
class Side:
    """One way to serve the arrivals. Energy per output token; percent; seconds."""

    joules: float
    tokens: int
    attainment_pct: float
    e2e_p50: float
    e2e_p99: float
    mean_clock_mhz: float
    failed: int = 0


@dataclass(frozen=True, slots=True)
class World:
    """Live, or simulated."""

    joulegate: Side
    max_clock: Side

    @property
    def saving_pct(self) -> float:
        ours, theirs = self.joulegate, self.max_clock
        return 100.0 * (1.0 - ours.joules / ours.tokens * theirs.tokens / theirs.joules)


@dataclass(frozen=True, slots=True)
class Answer:
    """Both worlds, and what kept the live one from being like the other."""

    live: World
    simulated: World
    seconds: float  # over which energy was counted
    lateness_ms: float  # p99 of the emulator

    @property
    def saving_points(self) -> float:
        return self.live.saving_pct - self.simulated.saving_pct

    @property
    def attainment_points(self) -> float:
        return self.live.joulegate.attainment_pct - self.simulated.joulegate.attainment_pct

    @property
    def why_not(self) -> list[str]:
        """Bars that were missed, and why the run says nothing."""
        found = []
        if self.lateness_ms > MAX_LATENESS_MS:
            found.append(f"the emulator was late: p99 {self.lateness_ms:.1f} ms")
        if failed := self.live.joulegate.failed + self.live.max_clock.failed:
            found.append(f"{failed} requests failed")
        if abs(self.saving_points) > SAVING_POINTS:
            found.append(f"savings differ by {self.saving_points:+.2f} points")
        if abs(self.attainment_points) > ATTAINMENT_POINTS:
            found.append(f"attainment differs by {self.attainment_points:+.2f} points")
        return found


def plan(path: Path, minutes: float, perturb: bool) -> Plan:
    """Raises UserError for a scenario that one engine does not serve."""
    settings = load(path, Scenario)
    if settings.instances != 1:
        raise UserError(f"{settings.name} has {settings.instances} instances", "one of S1, S2 and S3")
    profile = read_profile(settings.profile)
    setup = Setup((EngineCosts(profile),), scenarios.objectives_of(settings))
    with tempfile.TemporaryDirectory() as folder:
        bench = scenarios.prepare(settings, recipe_of(settings, Path(folder)), setup, (), 1)
        whole, span = held(bench.cases[0].score), Seconds(60.0 * minutes)
    rows = whole.at < span
    prompts = np.maximum(whole.input[rows], SHORTEST_PROMPT)
    arrivals = Load(whole.at[rows], prompts, whole.output[rows], span)
    return Plan(settings.name, settings.profile, profile, bench.objectives, arrivals, perturb)


def simulated(plan: Plan) -> tuple[Run, Run]:
    """`joulegate`, `max-clock`."""
    setup = Setup((EngineCosts(plan.profile),), plan.objectives)
    laws = Laws(AdmissionRules(), GovernorRules(switch=Seconds(plan.profile.actuation.clock_switch_s)))
    knowledge = Knowledge(HistoryPredictor(Cuts()))
    ours = Cluster(setup, laws, knowledge, lambda _: 0).run(plan.arrivals)
    return ours, run_fixed(plan.arrivals, setup, plan.profile.max_clock)


def side_of(run: Run, plan: Plan, seconds: float) -> Side:
    """A simulated run as if it had been watched for `seconds`, idle after its last request."""
    pooled = Pooled((run,))
    idle = plan.profile.tp * plan.profile.power.p_idle_w
    clocked = sum(run.residency.values())
    return Side(
        joules=run.joules_released + idle * max(0.0, seconds - run.span),
        tokens=pooled.tokens,
        attainment_pct=pooled.attainment(),
        e2e_p50=pooled.median_e2e(),
        e2e_p99=pooled.p99("e2e"),
        mean_clock_mhz=sum(clock * t for clock, t in run.residency.items()) / clocked if clocked else 0.0,
    )


async def live(plan: Plan, site: Site) -> tuple[Side, Side, float]:
    """Both engines on the same arrivals at the same instants; and for how long energy was counted."""
    load = plan.arrivals
    rows = zip(load.at.tolist(), load.input.tolist(), load.output.tolist(), strict=True)
    arrivals = [Arrival(at, int(prompt), int(output)) for at, prompt, output in rows]
    senders = [Sender(Target(url, site.model, Engine.EMULATED)) for url in (site.gateway, site.baseline)]
    before, began = site.joules(), time.monotonic()
    looking = asyncio.create_task(clocks(site))
    await play(arrivals, senders, said)
    await finish(senders, PATIENCE, lambda _: None)
    after, seconds = site.joules(), time.monotonic() - began
    looking.cancel()
    mean = float(np.mean(await looking))
    spent = [end - start for end, start in zip(after, before, strict=True)]
    ours = live_side(senders[0].tally, spent[0], mean, plan)
    return ours, live_side(senders[1].tally, spent[1], plan.profile.max_clock, plan), seconds


async def clocks(site: Site) -> Sequence[MegaHertz]:
    """The governed GPU's, until cancelled."""
    seen = [site.clock()]
    try:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            seen.append(site.clock())
    except asyncio.CancelledError:
        return seen


def live_side(tally: Tally, joules: float, clock: float, plan: Plan) -> Side:
    took = [answer.e2e for answer in tally.answers if not answer.error]
    return Side(
        joules=joules,
        tokens=sum(answer.tokens for answer in tally.answers if not answer.error),
        attainment_pct=attainment(tally, plan.objectives, Cuts())["all"] or 0.0,
        e2e_p50=float(np.median(took)),
        e2e_p99=float(np.quantile(took, 0.99, method="higher")),
        mean_clock_mhz=clock,
        failed=tally.sent - len(took),
    )


def compared(plan: Plan, runs: tuple[Run, Run]) -> Answer:
    """The live part, beside what was `simulated`."""
    with (
        tempfile.TemporaryDirectory(prefix="joulegate-live-") as folder,
        standing(Path(folder), plan.profile_file, plan.objectives, plan.perturb) as site,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        ours, theirs, seconds = runner.run(live(plan, site))
        lateness = site.lateness_ms()
    simulation = World(*(side_of(run, plan, seconds) for run in runs))
    return Answer(World(ours, theirs), simulation, seconds, lateness)


def said(seconds: float) -> None:
    if int(seconds) % 30 == 0:
        sys.stderr.write(f"live: {seconds:.0f} s, load {os.getloadavg()[0]:.1f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/bench live", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", type=Path, default=ROOT / "configs/scenarios/s1-t.yaml")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--perturb", action="store_true", help="live engines up to 10 %% off their profile")
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args()
    play_of = plan(options.scenario, options.minutes, options.perturb)
    runs = simulated(play_of)  # first: nothing else runs beside the live part
    go_first()
    answer = compared(play_of, runs)
    show(answer, play_of)
    if options.json is not None:
        options.json.write_text(json.dumps(document(answer, play_of), indent=1) + "\n")
    sys.exit(1 if answer.why_not else 0)


def document(answer: Answer, plan: Plan) -> dict[str, object]:
    return {
        "scenario": plan.scenario,
        "minutes": plan.arrivals.span / 60.0,
        "requests": len(plan.arrivals),
        "perturbed": plan.perturb,
        "live_saving_pct": answer.live.saving_pct,
        "simulated_saving_pct": answer.simulated.saving_pct,
        "saving_points": answer.saving_points,
        "attainment_points": answer.attainment_points,
        "why_not": answer.why_not,
        **asdict(answer),
    }


def show(answer: Answer, plan: Plan) -> None:
    table = Table(title=f"{plan.scenario}, {len(plan.arrivals)} requests, energy over {answer.seconds:.0f} s")
    for title in ("", "saved %", "J", "attainment %", "E2E p50 s", "E2E p99 s", "mean MHz"):
        table.add_column(title, justify="right" if title else "left")
    for name, world in (("live", answer.live), ("simulated", answer.simulated)):
        for policy, side in (("joulegate", world.joulegate), ("max-clock", world.max_clock)):
            table.add_row(
                f"{name} {policy}",
                f"{world.saving_pct:.2f}" if side is world.joulegate else "",
                f"{side.joules:,.0f}",
                f"{side.attainment_pct:.2f}",
                f"{side.e2e_p50:.2f}",
                f"{side.e2e_p99:.2f}",
                f"{side.mean_clock_mhz:.0f}",
            )
    console = Console(width=110)
    console.print(table)
    apart = (
        f"savings {answer.saving_points:+.2f} points (3), attainment {answer.attainment_points:+.2f} (0.5)"
    )
    console.print(f"live against simulated: {apart}; emulator p99 {answer.lateness_ms:.1f} ms late")
    for reason in answer.why_not:
        console.print(f"missed: {reason}")


if __name__ == "__main__":
    main()
