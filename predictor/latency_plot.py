"""Pure: predictions as a picture (SVG): calibration, and error by clock and by load."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log10
from statistics import median

from predictor.latency_evaluate import Prediction

SIDE, GAP = 300, 64  # pixels
INK, DOT, MIDDLE, TAIL = "#444", "#1f77b4", "#1f77b4", "#d62728"
STYLE = "font: 12px sans-serif; background: white"


@dataclass(frozen=True, slots=True)
class Axis:
    """A logarithmic or linear scale onto SIDE pixels."""

    low: float
    high: float
    logarithmic: bool

    def at(self, value: float) -> float:
        low, high, here = self.low, self.high, value
        if self.logarithmic:
            low, high, here = log10(low), log10(high), log10(value)
        return SIDE * (here - low) / (high - low) if high > low else SIDE / 2.0


def picture(predictions: Sequence[Prediction]) -> str:
    """Three panels side by side. Raises ValueError without predictions."""
    if not predictions:
        raise ValueError("nothing was predicted")
    panels = (
        _calibration(predictions),
        _errors(predictions, "clock, MHz", lambda p: p.row.clock),
        _errors(predictions, "load: sequences, or 1000 prompt tokens", _load),
    )
    width = len(panels) * (SIDE + GAP) + GAP
    body = "".join(
        f'<g transform="translate({GAP + i * (SIDE + GAP)},28)">{panel}</g>' for i, panel in enumerate(panels)
    )
    height = SIDE + 28 + GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="{STYLE}">{body}</svg>\n'
    )


def _load(prediction: Prediction) -> float:
    batch = prediction.row.batch
    return float(batch.decoding or max(1, round(batch.prefill_tokens / 1000.0)))


def _calibration(predictions: Sequence[Prediction]) -> str:
    milliseconds = [(1000.0 * p.true_seconds, 1000.0 * p.seconds) for p in predictions]
    every = [value for pair in milliseconds for value in pair]
    axis = Axis(min(every) * 0.9, max(every) * 1.1, logarithmic=True)
    dots = "".join(_dot(axis.at(x), axis.at(y), 2.0, DOT) for x, y in milliseconds)
    line = f'<line x1="0" y1="{SIDE}" x2="{SIDE}" y2="0" stroke="{INK}" stroke-dasharray="4"/>'
    return _frame("predicted against measured, ms", axis, axis, "measured") + line + dots


def _errors(predictions: Sequence[Prediction], what: str, of: Callable[[Prediction], float]) -> str:
    """Median (blue) and 90th percentile (red) of the absolute error, over groups of about equal size."""
    ordered = sorted(predictions, key=of)
    size = max(1, len(ordered) // 12)
    groups = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    points = []
    for group in groups:
        errors = sorted(100.0 * abs(p.seconds / p.true_seconds - 1.0) for p in group)
        points.append((median(map(of, group)), median(errors), errors[int(0.9 * (len(errors) - 1))]))
    across = Axis(points[0][0], points[-1][0], logarithmic=False)
    up = Axis(0.0, max(1.0, *(tail for _, _, tail in points)) * 1.1, logarithmic=False)
    middle = _path([(across.at(x), up.at(m)) for x, m, _ in points], MIDDLE)
    tail = _path([(across.at(x), up.at(t)) for x, _, t in points], TAIL)
    return _frame("error of iteration time, %: median, p90", across, up, what) + middle + tail


def _frame(title: str, across: Axis, up: Axis, what: str) -> str:
    ends = "".join(
        [
            _text(0, SIDE + 16, f"{across.low:.3g}", "start"),
            _text(SIDE, SIDE + 16, f"{across.high:.4g}", "end"),
            _text(SIDE / 2, SIDE + 34, what, "middle"),
            _text(-4, SIDE, f"{up.low:.3g}", "end"),
            _text(-4, 10, f"{up.high:.3g}", "end"),
            _text(SIDE / 2, -10, title, "middle"),
        ]
    )
    return f'<rect width="{SIDE}" height="{SIDE}" fill="none" stroke="{INK}"/>{ends}'


def _path(points: Iterable[tuple[float, float]], colour: str) -> str:
    placed = [(x, SIDE - y) for x, y in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    dots = "".join(_dot(x, SIDE - y, 3.0, colour) for x, y in placed)
    return f'<polyline points="{line}" fill="none" stroke="{colour}"/>{dots}'


def _dot(x: float, y: float, radius: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{SIDE - y:.1f}" r="{radius}" fill="{colour}" fill-opacity="0.6"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{INK}">{text}</text>'
