"""Pure: pictures of figures as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from simulator.workload import Floats

WIDTH, HEIGHT, MARGIN = 640.0, 260.0, 46.0
COLOURS = (
    *("#555555", "#b8860b", "#8a2be2", "#1f77b4", "#2ca02c", "#d62728"),
    *("#17becf", "#e377c2", "#8c564b", "#bcbd22", "#ff7f0e"),
)
Line = tuple[str, Floats, Floats]  # name, x, y


@dataclass(frozen=True, slots=True)
class Axis:
    name: str
    low: float
    high: float

    def share(self, value: Floats) -> Floats:
        """How far along it a value lies."""
        return (value - self.low) / max(1e-9, self.high - self.low)


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture with its axes."""

    title: str
    x: Axis
    y: Axis
    height: float = HEIGHT

    def line(self, x: Floats, y: Floats, colour: str) -> str:
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in self._places(x, y))
        return f"<polyline fill=none stroke={colour} stroke-width=1.5 points='{points}'/>"

    def dot(self, x: float, y: float, colour: str, ring: bool = False) -> str:
        [(cx, cy)] = self._places(np.array([x]), np.array([y]))
        paint = f"r=6 fill=none stroke={colour}" if ring else f"r=4 fill={colour}"
        return f"<circle cx={cx:.1f} cy={cy:.1f} {paint} />"

    def upright(self, x: float) -> str:
        """A dashed line from top to bottom."""
        across = f"{float(self._places(np.array([x]), np.array([0.0]))[0][0]):.1f}"
        return f"<path d='M{across} {MARGIN}V{self.height - MARGIN}' stroke=#999 stroke-dasharray=4 />"

    def words(self, y: float, said: str) -> str:
        """Along the left edge."""
        [(_, across)] = self._places(np.array([self.x.low]), np.array([y]))
        return _text(MARGIN + 4, round(across + 4), said)

    def figure(self, marks: str) -> str:
        """The picture with these in it."""
        floor, edge = self.height - MARGIN, WIDTH - MARGIN
        texts = (
            _text(MARGIN, 20, self.title, "start", 14),
            _text(MARGIN, floor + 16, f"{self.x.low:.4g}"),
            _text(edge, floor + 16, f"{self.x.high:.4g} {self.x.name}", "end"),
            _text(MARGIN - 6, MARGIN + 4, f"{self.y.high:.4g}" if self.y.name else "", "end"),
            _text(MARGIN - 6, floor, f"{self.y.low:.4g}" if self.y.name else "", "end"),
            _text(MARGIN, MARGIN - 8, self.y.name),
        )
        axes = f"<path d='M{MARGIN} {MARGIN}V{floor}H{edge}' fill=none stroke=#999 />"
        size = f"viewBox='0 0 {WIDTH:.0f} {self.height:.0f}' width={WIDTH:.0f}"
        named = f"role=img aria-label='{escape(self.title)}'"
        return f"<figure><svg {size} {named}>{''.join(texts)}{axes}{marks}</svg></figure>"

    def _places(self, x: Floats, y: Floats) -> list[tuple[float, float]]:
        across = MARGIN + self.x.share(x) * (WIDTH - 2 * MARGIN)
        down = self.height - MARGIN - self.y.share(y) * (self.height - 2 * MARGIN)
        return list(zip(across.tolist(), down.tolist(), strict=True))


def colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def chart(title: str, x_name: str, y_name: str, lines: Sequence[Line]) -> str:
    """A line each; empty where none has a point."""
    lines = [line for line in lines if len(line[1])]
    if not lines:
        return ""
    left = min(float(x.min()) for _, x, _ in lines)
    right = max(float(x.max()) for _, x, _ in lines)
    top = max(float(y.max()) for _, _, y in lines)
    frame = Frame(title, Axis(x_name, left, right), Axis(y_name, 0.0, top))
    marks = [frame.line(x, y, colour(i)) for i, (_, x, y) in enumerate(lines)]
    return frame.figure("".join(marks) + legend([name for name, _, _ in lines]))


def legend(names: Sequence[str]) -> str:
    """In the colours of their places, down the right edge."""
    return "".join(
        _text(WIDTH - MARGIN, MARGIN + 14 * i, name, "end", paint=f" fill={colour(i)}")
        for i, name in enumerate(names)
    )


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 11, paint: str = "") -> str:
    return f"<text x={x} y={y} font-size={size} text-anchor={anchor}{paint}>{escape(words)}</text>"
