"""Shell: how far the projection of batch, KV and time is off, beside the engine that it projects.

A trace is served under the laws. Every few seconds in which no prompt waits the engine is copied and run to
its end, nothing more arriving, iteration by iteration; the laws say beforehand how that will go.
"""

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from control.admission import AdmissionRules
from control.governor import GovernorRules
from control.projection import SEGMENTS, Load, Pace, Stretch, drain, peak_kv
from joulegate.domain import Cuts, Objectives
from joulegate.units import MegaHertz, Seconds
from predictor.length import HistoryPredictor
from simulator.cluster import Cluster, Knowledge, Laws, Setup
from simulator.costs import EngineCosts
from simulator.engine import Engine
from simulator.recipe import scale
from simulator.simulate import read_profile
from simulator.spool import read_load
from simulator.station import Station
from simulator.workload import Stream

ROOT = Path(__file__).parent.parent
PAPER = {"batch_pct": 0.19, "kv_pct": 2.26}  # throttLL'eM's own
EVERY = 5.0  # seconds
FEWEST = 4  # sequences in flight
SIGNED = ("kv", "time", "time_coarse")
# E2E objectives have every request's tokens counted at every look; this one is never missed
AIMS = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), Seconds(1e6), None)


@dataclass(slots=True)
class Errors:
    """Of all looks. Shares; what is projected over what came, less one."""

    wrong: float = 0.0  # sequences, summed over iterations: projected or there, not both
    batch: float = 0.0  # sequences, summed over iterations
    kv: list[float] = field(default_factory=list)
    time: list[float] = field(default_factory=list)
    coarse: list[float] = field(default_factory=list)  # time in as few stretches as the governor takes

    def document(self) -> dict[str, float]:
        found = {"looks": float(len(self.kv)), "batch_pct": 100.0 * self.wrong / max(1.0, self.batch)}
        for name, errors in (("kv", self.kv), ("time", self.time), ("time_coarse", self.coarse)):
            found[f"{name}_pct"] = 100.0 * float(np.mean(np.abs(errors)))
            found[f"{name}_bias_pct"] = 100.0 * float(np.mean(errors))
        return found


class Watched(Cluster):
    """One instance under the laws, looked at every few seconds."""

    def __init__(self, setup: Setup, true_lengths: bool) -> None:
        laws = Laws(AdmissionRules(), GovernorRules(), true_lengths=true_lengths)
        super().__init__(setup, laws, Knowledge(HistoryPredictor(Cuts())), random.Random(1).randrange)
        self.errors = Errors()
        self._look_at = 0.0

    def _tick(self, now: float) -> None:
        super()._tick(now)
        [station] = self._sites.stations
        quiet = station.engine.running == station.engine.decoding and not station.engine.waiting
        if now >= self._look_at and quiet and station.engine.decoding >= FEWEST:
            self._look_at = now + EVERY
            compare(station, self.errors)


def compare(station: Station, errors: Errors) -> None:
    """What the laws say of an instance, and what its engine then does."""
    law, engine = station.law, deepcopy(station.engine)
    assert law.model is not None
    clock = MegaHertz(int(engine.clock))
    peak, exact, few = peak_kv(law.book), drain(law.book, law.book.running), drain(law.book, SEGMENTS)
    pace = Pace(law.model, Load(law.book.decoding, law.book.context, 0, 1), clock)
    began, held = engine.now, engine.kv_tokens
    truth = list(to_the_end(engine))
    seconds = engine.now - began
    errors.kv.append(peak / max(held, *(kv for _, kv in truth)) - 1.0)
    errors.time.append(taken(exact, pace) / seconds - 1.0)
    errors.coarse.append(taken(few, pace) / seconds - 1.0)
    wrong, batch = misjudged(exact, [decoding for decoding, _ in truth])
    errors.wrong, errors.batch = errors.wrong + wrong, errors.batch + batch


def misjudged(stretches: Iterable[Stretch], truth: list[int]) -> tuple[int, int]:
    """Sequences that are projected or there, not both; sequences there; summed over iterations.

    `truth`: how many decode after each iteration, and so in the next one.
    """
    batch, found = truth[:-1], list(projected_batch(stretches))[1:]
    longest = max(len(batch), len(found))
    pairs = zip(batch + [0] * (longest - len(batch)), found + [0] * (longest - len(found)), strict=True)
    return sum(abs(here - there) for here, there in pairs), sum(batch)


def to_the_end(engine: Engine) -> Iterator[tuple[int, int]]:
    """(sequences decoding, tokens in KV) after each further iteration."""
    while engine.decoding:
        engine.begin(engine.now)
        engine.complete()
        yield engine.decoding, engine.kv_tokens


def projected_batch(stretches: Iterable[Stretch]) -> Iterator[int]:
    """Sequences in each iteration."""
    for stretch in stretches:
        yield from [stretch.decoding] * round(stretch.steps)


def taken(stretches: Iterable[Stretch], pace: Pace) -> float:
    """Seconds."""
    return sum(each.steps * pace.of(each.decoding, each.context) for each in stretches)


def measure(load: Stream, costs: EngineCosts, known: bool) -> dict[str, float]:
    """`known`: true lengths; else the product's own predictor, from nothing."""
    watched = Watched(Setup((costs,), AIMS), known)
    watched.run(load)
    return watched.errors.document()


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench projection", description=__doc__)
    parser.add_argument("--trace", type=Path, default=ROOT / "configs/traces/azure2023_conv_10min.csv")
    parser.add_argument("--scale", type=float, default=1.5)
    parser.add_argument("--profile", type=Path, default=ROOT / "configs/profiles/h100_llama-3.1-8b_tp1.json")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    costs = EngineCosts(read_profile(options.profile))
    load = scale(read_load(options.trace), options.scale, 0)
    rows = {"known": measure(load, costs, known=True), "predicted": measure(load, costs, known=False)}
    show(rows)
    if options.json is not None:
        options.json.write_text(json.dumps({"paper": PAPER, "lengths": rows}, indent=2))


def show(rows: dict[str, dict[str, float]]) -> None:
    table = Table("lengths", "looks", "batch %", "peak of KV %", "time %", f"in {SEGMENTS} stretches %")
    table.title = "projection error: mean (bias)"
    for name, row in rows.items():
        signed = [f"{row[f'{key}_pct']:.2f} ({row[f'{key}_bias_pct']:+.2f})" for key in SIGNED]
        table.add_row(name, f"{row['looks']:.0f}", f"{row['batch_pct']:.2f}", *signed)
    table.add_row("throttLL'eM", "", f"{PAPER['batch_pct']:.2f}", f"{PAPER['kv_pct']:.2f}", "", "")
    Console().print(table)


if __name__ == "__main__":
    main()
