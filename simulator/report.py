"""Pure: the HTML report of a scenario: one file, no scripts, no other files; pictures are inline SVG.

Every figure of every policy; power against the baseline, instances over time, time at each clock,
attainment, distribution of TTFT, TPOT and E2E, and every policy's saving against its slowdown.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Literal

import numpy as np

from simulator.drawing import Axis, Frame, Line, chart, colour, legend
from simulator.results import ATTAINMENT_LOSS, Pooled, Run
from simulator.summary import Comparison, first_tokens, notes, other_half, terms
from simulator.workload import Floats

ROW = 18.0  # of the picture of attainment
FLOOR = -25.0  # % saved: who is below is named beside the picture
STYLE = """<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:96em;margin:2em auto;padding:0 1em}
svg{max-width:100%;height:auto;margin:0 1em 1em 0}
div{overflow-x:auto}
td,th{padding:0 .6em;text-align:right;white-space:nowrap;font-weight:normal}
tr>:first-child{text-align:left}
th{border-bottom:1px solid #999}
figure{display:inline-block;margin:0}
</style>"""
Policy = Mapping[str, Any]
COLUMNS: Sequence[tuple[str, Callable[[Policy], str]]] = (
    ("policy", lambda p: str(p["name"])),
    ("saved %", lambda p: f"{p['saving_pct_released']:.1f}"),
    ("95 %", lambda p: "..".join(f"{end:.1f}" for end in p["saving_ci_pct"] or ())),
    ("worst seed", lambda p: f"{p['worst_seed_saving_pct']:.1f}"),
    ("swapped", other_half),
    ("counts", lambda p: "yes" if p["counts"] else "no"),
    ("owned %", lambda p: f"{p['saving_pct_owned']:.1f}"),
    ("over static", lambda p: _known(p["saving_over_static_points"], "+.1f")),
    ("median E2E x", lambda p: f"{p['slowdown_p50_e2e']:.2f}"),
    ("attained %", lambda p: f"{p['attainment_pct']:.2f}"),
    ("by tokens", lambda p: f"{p['attainment_tokens_pct']:.2f}"),
    ("5x", lambda p: _known(p["attainment_5x_pct"], ".2f")),
    ("TTFT P99 S/M/L ms", first_tokens),
    ("TPOT P99 ms", lambda p: f"{1e3 * p['tpot_p99_s']:.1f}"),
    ("ITL P99 ms", lambda p: f"{1e3 * p['itl_p99_s']:.1f}"),
    ("E2E P99 s", lambda p: f"{p['e2e_p99_s']:.2f}"),
    ("kWh released", lambda p: f"{p['energy_kwh_released']:.4g}"),
    ("kWh owned", lambda p: f"{p['energy_kwh_owned']:.4g}"),
    ("J/output token", lambda p: f"{p['j_per_output_token']:.3g}"),
    ("J/token", lambda p: f"{p['j_per_total_token']:.3g}"),
    ("GPUs", lambda p: f"{p['gpus_avg']:.1f}"),
    ("clock changes/min", lambda p: f"{p['clock_changes_per_min']:.0f}"),
)


def page(result: Comparison, made: Mapping[str, Any]) -> str:
    """The whole report."""
    title = f"{made['scenario']} on {made['profile']}"

    def lines(line: Callable[[Pooled], tuple[Floats, Floats]]) -> list[Line]:
        return [(name, *line(pooled)) for name, pooled in result.policies.items()]

    share = "share of requests"
    pictures = (
        chart("Power, first seed", "minutes", "W", lines(_power)),
        chart("Instances on, first seed", "minutes", "on", lines(_instances)),
        chart("Time at or below a clock", "MHz", "share", lines(_clocks)),
        _attainment(made["policies"]),
        chart("TTFT", "s", share, lines(lambda pooled: _cdf(pooled, "ttft"))),
        chart("TPOT", "s", share, lines(lambda pooled: _cdf(pooled, "tpot"))),
        chart("End to end", "s", share, lines(lambda pooled: _cdf(pooled, "e2e"))),
        _scatter(made["policies"]),
    )
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>{STYLE}"
    told = f"<p>{escape(terms(made))}. Every figure is simulated. Baseline: {escape(made['baseline'])}.</p>"
    body = f"{_table(made['policies'])}{_list(notes(made))}{''.join(pictures)}"
    return f"{head}<h1>{escape(title)}</h1>{told}{body}</html>"


def _table(policies: Sequence[Policy]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name, _ in COLUMNS)
    rows = ("".join(f"<td>{escape(cell(policy))}</td>" for _, cell in COLUMNS) for policy in policies)
    return f"<div><table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table></div>"


def _list(lines: Sequence[str]) -> str:
    """Why savings do not count."""
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _known(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _power(pooled: Pooled) -> tuple[Floats, Floats]:
    return _minutes(pooled.runs[0], len(pooled.runs[0].watts)), pooled.runs[0].watts


def _instances(pooled: Pooled) -> tuple[Floats, Floats]:
    return _minutes(pooled.runs[0], len(pooled.runs[0].instances)), pooled.runs[0].instances


def _minutes(run: Run, count: int) -> Floats:
    """Of so many figures of its timelines."""
    return np.arange(count, dtype=np.float64) * (run.step / 60.0)


def _clocks(pooled: Pooled) -> tuple[Floats, Floats]:
    seconds: dict[int, float] = {}
    for run in pooled.runs:
        for clock, time in run.residency.items():
            seconds[clock] = seconds.get(clock, 0.0) + time
    clocks = sorted(seconds)
    if not clocks:
        return np.empty(0), np.empty(0)
    total = max(1e-9, sum(seconds.values()))
    share = np.cumsum([seconds[clock] for clock in clocks]) / total
    return np.array([clocks[0], *clocks], dtype=np.float64), np.array([0.0, *share])


def _cdf(pooled: Pooled, what: Literal["ttft", "tpot", "e2e"]) -> tuple[Floats, Floats]:
    """Of those that were served; empty where none was."""
    values, shares = pooled.spread(what), np.linspace(0.0, 0.995, 200)
    ranks = [int(share * (values.finite - 1)) for share in shares] if values.finite else []
    return np.array([values.ranked(rank) for rank in ranks]), shares[: len(ranks)]


def _attainment(policies: Sequence[Policy]) -> str:
    """A row a policy, the first on top; dashed: what the baseline allows."""
    shares = [(policy["attainment_pct"], policy["attainment_tokens_pct"]) for policy in policies]
    least = shares[0][0] - ATTAINMENT_LOSS
    left = max(0.0, min(least, *(share for pair in shares for share in pair)) - 0.1)
    rows, title = len(policies), "Attainment by requests (dot) and output tokens (ring)"
    frame = Frame(title, Axis("%", left, 100.0), Axis("", 0.0, rows), 100.0 + ROW * rows)
    marks = frame.upright(least)
    for i, (policy, (requests, tokens)) in enumerate(zip(policies, shares, strict=True)):
        y = rows - i - 0.5
        marks += frame.dot(requests, y, colour(i)) + frame.dot(tokens, y, colour(i), ring=True)
        marks += frame.words(y, policy["name"])
    return frame.figure(marks)


def _scatter(policies: Sequence[Policy]) -> str:
    saved = [policy["saving_pct_released"] for policy in policies]
    slowed = [policy["slowdown_p50_e2e"] for policy in policies]
    down, up = max(FLOOR, min(0.0, *saved)), max(1.0, *saved)
    across = Axis("x median E2E of maximum clock", min(1.0, *slowed), max(1.3, *slowed))
    frame = Frame("Saving against slowdown", across, Axis("% saved", down, up))
    marks, names = "", []
    for i, policy in enumerate(policies):
        inside = saved[i] >= down
        marks += frame.dot(slowed[i], saved[i], colour(i)) if inside else ""
        names.append(
            f"{policy['name']} {saved[i]:.1f} % at {slowed[i]:.2f} x" + ("" if inside else " (below)")
        )
    return frame.figure(marks + legend(names))
