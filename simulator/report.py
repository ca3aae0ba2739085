"""Pure: the HTML report of a scenario: one file, no scripts, no other files; pictures are inline SVG.

Power against the baseline, instances over time, time at each clock, distribution of TTFT and E2E, and every
policy's saving against its slowdown.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Literal

import numpy as np

from simulator.results import Pooled, Run
from simulator.summary import Comparison, table
from simulator.workload import Floats

WIDTH, HEIGHT, MARGIN = 640.0, 260.0, 46.0
COLOURS = (
    *("#555555", "#b8860b", "#8a2be2", "#1f77b4", "#2ca02c", "#d62728"),
    *("#17becf", "#e377c2", "#8c564b", "#bcbd22", "#ff7f0e"),
)
STYLE = """<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:72em;margin:2em auto;padding:0 1em}
svg{max-width:100%;height:auto;margin:0 1em 1em 0}
pre{overflow-x:auto}
figure{display:inline-block;margin:0}
</style>"""
Line = tuple[str, Floats, Floats]  # name, x, y


def page(result: Comparison, made: Mapping[str, Any]) -> str:
    """The whole report."""
    title = f"{made['scenario']} on {made['profile']}"
    policies = result.policies
    pictures = [
        _chart("Power, first seed", "minutes", "W", [_power(name, p) for name, p in policies.items()]),
        _chart(
            "Instances on, first seed", "minutes", "", [_instances(name, p) for name, p in policies.items()]
        ),
        _chart(
            "Time at or below a clock", "MHz", "share", [_clocks(name, p) for name, p in policies.items()]
        ),
        _chart("TTFT", "s", "share of requests", [_cdf(name, p, "ttft") for name, p in policies.items()]),
        _chart(
            "End to end", "s", "share of requests", [_cdf(name, p, "e2e") for name, p in policies.items()]
        ),
        _scatter(made["policies"]),
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>{STYLE}"
    told = "<p>All figures are simulated. Baseline: max-clock.</p>"
    body = f"<pre>{escape(table(made))}</pre>{''.join(pictures)}"
    return f"{head}<h1>{escape(title)}</h1>{told}{body}</html>"


def _power(name: str, pooled: Pooled) -> Line:
    return name, _minutes(pooled.runs[0], len(pooled.runs[0].watts)), pooled.runs[0].watts


def _instances(name: str, pooled: Pooled) -> Line:
    return name, _minutes(pooled.runs[0], len(pooled.runs[0].instances)), pooled.runs[0].instances


def _minutes(run: Run, count: int) -> Floats:
    """Of so many figures of its timelines."""
    return np.arange(count, dtype=np.float64) * (run.step / 60.0)


def _clocks(name: str, pooled: Pooled) -> Line:
    seconds: dict[int, float] = {}
    for run in pooled.runs:
        for clock, time in run.residency.items():
            seconds[clock] = seconds.get(clock, 0.0) + time
    clocks = sorted(seconds)
    if not clocks:
        return name, np.empty(0), np.empty(0)
    total = max(1e-9, sum(seconds.values()))
    share = np.cumsum([seconds[clock] for clock in clocks]) / total
    return name, np.array([clocks[0], *clocks], dtype=np.float64), np.array([0.0, *share])


def _cdf(name: str, pooled: Pooled, what: Literal["ttft", "e2e"]) -> Line:
    """Of those that were served; empty where none was."""
    values, shares = pooled.spread(what), np.linspace(0.0, 0.995, 200)
    ranks = [int(share * (values.finite - 1)) for share in shares] if values.finite else []
    return name, np.array([values.ranked(rank) for rank in ranks]), shares[: len(ranks)]


def _chart(title: str, x_name: str, y_name: str, lines: Sequence[Line]) -> str:
    lines = [line for line in lines if len(line[1])]
    if not lines:
        return ""
    left = min(float(x.min()) for _, x, _ in lines)
    right = max(float(x.max()) for _, x, _ in lines)
    top = max(float(y.max()) for _, _, y in lines)
    marks = [
        f"<polyline fill=none stroke={COLOURS[i % len(COLOURS)]} stroke-width=1.5 "
        f"points='{_points(x, y, (left, right), top)}'/>"
        for i, (_, x, y) in enumerate(lines)
    ]
    names = [name for name, _, _ in lines]
    return _figure(title, (x_name, left, right), (y_name, top), "".join(marks) + _legend(names))


def _scatter(policies: Sequence[Mapping[str, Any]]) -> str:
    top = max(1.0, max(policy["saving_pct_released"] for policy in policies))
    right = max(1.3, max(policy["slowdown_p50_e2e"] for policy in policies))
    marks = ""
    for i, policy in enumerate(policies):
        x, y = np.array([policy["slowdown_p50_e2e"]]), np.array([policy["saving_pct_released"]])
        cx, cy = _points(x, y, (1.0, right), top).split(",")
        marks += f"<circle cx={cx} cy={cy} r=5 fill={COLOURS[i % len(COLOURS)]} />"
    names = [policy["name"] for policy in policies]
    axes = ("median E2E over that at maximum clock", 1.0, right)
    return _figure("Saving against slowdown", axes, ("% saved", top), marks + _legend(names))


def _points(x: Floats, y: Floats, span: tuple[float, float], top: float) -> str:
    left, right = span
    px = MARGIN + (x - left) / max(1e-9, right - left) * (WIDTH - 2 * MARGIN)
    py = HEIGHT - MARGIN - y / max(1e-9, top) * (HEIGHT - 2 * MARGIN)
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py, strict=True))


def _legend(names: Sequence[str]) -> str:
    return "".join(
        f"<text x={WIDTH - MARGIN - 110} y={MARGIN + 14 * i} font-size=11 "
        f"fill='{COLOURS[i % len(COLOURS)]}'>{escape(name)}</text>"
        for i, name in enumerate(names)
    )


def _figure(title: str, x_axis: tuple[str, float, float], y_axis: tuple[str, float], marks: str) -> str:
    floor, edge = HEIGHT - MARGIN, WIDTH - MARGIN
    size = f"viewBox='0 0 {WIDTH:.0f} {HEIGHT:.0f}' width={WIDTH:.0f}"
    texts = (
        _text(MARGIN, 20, title, "start", 14),
        _text(MARGIN, floor + 16, f"{x_axis[1]:.4g}"),
        _text(edge, floor + 16, f"{x_axis[2]:.4g} {x_axis[0]}", "end"),
        _text(MARGIN - 6, MARGIN + 4, f"{y_axis[1]:.4g}", "end"),
        _text(MARGIN, MARGIN - 8, y_axis[0]),
    )
    axes = f"<path d='M{MARGIN} {MARGIN}V{floor}H{edge}' fill=none stroke=#999 />"
    named = f"role=img aria-label='{escape(title)}'"
    return f"<figure><svg {size} {named}>{''.join(texts)}{axes}{marks}</svg></figure>"


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 11) -> str:
    return f"<text x={x} y={y} font-size={size} text-anchor={anchor}>{escape(words)}</text>"
