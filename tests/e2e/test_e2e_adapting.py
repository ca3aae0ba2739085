"""Engines that are not what is known of them: one that turns slow, one that nobody profiled. Live, emulated.

The figures each prints (`pytest -s`) are those of docs/latency-model.md, measured on an idle machine; what is
asserted holds on a busy one.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lone import TOP, LoneSite, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SLOWER = 1.3
FOLLOWED = 60.0  # seconds of traffic


@pytest.fixture
def profiled(tmp_path: Path) -> Iterator[LoneSite]:
    site = LoneSite(tmp_path, 20.0, profiled=True)  # SLOWER, and the usual clock will not do
    yield site
    site.close()


@pytest.fixture
def unprofiled(tmp_path: Path) -> Iterator[LoneSite]:
    site = LoneSite(tmp_path, 30.0, profiled=False)
    yield site
    site.close()


def test_an_engine_that_turns_slow_is_followed(profiled: LoneSite) -> None:
    site = profiled
    with site.traffic(3.0, 100):
        eventually(lambda: len(site.ended()) >= 60, 120.0)
        eventually(lambda: 0 < (site.instance()["target_mhz"] or TOP) < TOP, 60.0)
        before, usual = site.ended()[:40], site.instance()
        site.turn(SLOWER)
        wanted = usual["correction"] * (1.0 + 0.6 * (SLOWER - 1.0))
        corrected = eventually(lambda: site.instance()["correction"] >= wanted, FOLLOWED)
        drifting = eventually(lambda: site.instance()["drift"] == "slower", FOLLOWED)
        seen = len(site.ended())
        eventually(lambda: len(site.ended()) >= seen + 60, 120.0)
        after, slow = site.ended(), site.instance()
    during, settled = after[40 : len(after) - seen + 60], after[:40]
    sys.stdout.write(
        f"\ncorrected after {corrected:.1f} s, drift after {drifting:.1f} s more; correction"
        f" {usual['correction']:.3f} -> {slow['correction']:.3f}, error {usual['model_error']:.3f} ->"
        f" {slow['model_error']:.3f}, ceiling {usual['target_mhz']} -> {slow['target_mhz']} MHz; TPOT met by"
        f" {site.attainment(before):.3f} before, {site.attainment(during):.3f} of {len(during)} meanwhile,"
        f" {site.attainment(settled):.3f} after\n"
    )
    assert slow["drift"] == "slower"
    assert slow["correction"] > usual["correction"] * 1.1
    assert slow["advised_mhz"] > usual["advised_mhz"], (
        "a slower engine needs a higher clock for the same TPOT"
    )
    ratios = sorted(r["actual"]["tpot_s"] / r["predicted"]["tpot_s"] for r in settled)
    assert ratios[len(ratios) // 2] == pytest.approx(1.0, abs=0.15), "what is expected is what happens again"


def test_an_engine_that_drifts_is_learned_anew_in_a_child_while_it_serves(tmp_path: Path) -> None:
    site = LoneSite(tmp_path, 40.0, profiled=True, refit_interval=20.0)
    try:
        site.turn(1.3)
        with site.traffic(3.0, 100):
            started = eventually(lambda: site.instance()["drift"] == "slower", 120.0)
            corrected = site.instance()["correction"]
            done = eventually(lambda: site.instance()["refits"] > 0, 300.0)
            seen = len(site.ended())
            eventually(lambda: len(site.ended()) >= seen + 30, 120.0)
            now = site.instance()
    finally:
        site.close()
    sys.stdout.write(
        f"\ndrift after {started:.0f} s, learned anew {done:.0f} s later; correction {corrected:.3f} ->"
        f" {now['correction']:.3f}, error {now['model_error']:.3f}\n"
    )
    assert (now["model"], now["refits_failed"], now["refit_problem"]) == ("refitted", 0, "")
    assert abs(now["correction"] - 1.0) < 0.5 * abs(corrected - 1.0)


def test_an_engine_nobody_profiled_starts_at_default_clocks_and_is_slowed_as_it_becomes_known(
    unprofiled: LoneSite,
) -> None:
    site = unprofiled
    started = time.monotonic()
    assert site.instance()["model"] == "none yet"
    assert site.instance()["target_mhz"] is None
    with site.traffic(3.0, 100):
        learned = eventually(lambda: site.instance()["model"] == "learned", 120.0)
        clocks = [TOP]
        end = time.monotonic() + 300.0
        while min(clocks) > 0.9 * TOP or len(site.ended()) < 150:
            assert time.monotonic() < end, f"explored {clocks}"
            target = site.instance()["target_mhz"] or TOP
            if target != clocks[-1]:
                clocks.append(target)
            time.sleep(0.2)
        records = site.ended()
    sys.stdout.write(
        f"\nlearned after {learned:.1f} s, explored {clocks} in {time.monotonic() - started:.0f} s; TPOT met"
        f" by {site.attainment(records):.3f} of {len(records)}\n"
    )
    first = [r for r in records if r["clock_mhz"] in (None, TOP)]
    assert first, "it began at default clocks"
    assert site.attainment(records) > 0.8, "explored inside its slack"
