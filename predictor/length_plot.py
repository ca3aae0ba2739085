"""Pure: the calibration of class probabilities, drawn: how often a class came, by how likely it was said."""

from collections.abc import Sequence

from predictor.length_evaluate import Bin

SIDE, MARGIN = 320, 48
LEAST = 30  # cases below which a bin says nothing


def calibration_svg(bins: Sequence[Bin], title: str) -> str:
    """A square: said probability across, observed frequency up; the dashed diagonal is perfect."""
    shown = [b for b in bins if b.n >= LEAST]
    points = " ".join(f"{_x(b.said):.1f},{_y(b.came):.1f}" for b in shown)
    dots = "".join(
        f'<circle cx="{_x(b.said):.1f}" cy="{_y(b.came):.1f}" r="4" fill="#0b6e4f">'
        f"<title>said {b.said:.2f}, came {b.came:.2f}, {b.n} cases</title></circle>"
        for b in shown
    )
    ticks = "".join(_tick(share / 4) for share in range(5))
    full = SIDE + 2 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {full} {full}" font-family="sans-serif" '
        f'font-size="12"><rect width="{full}" height="{full}" fill="white"/>'
        f'<text x="{MARGIN}" y="{MARGIN - 18}" font-size="14">{title}</text>{ticks}'
        f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" stroke="#999" stroke-dasharray="4"/>'
        f'<polyline points="{points}" fill="none" stroke="#0b6e4f" stroke-width="2"/>{dots}'
        f'<text x="{MARGIN}" y="{full - 8}">probability said</text>'
        f'<text x="14" y="{_y(0)}" transform="rotate(-90 14 {_y(0)})">share that came</text></svg>\n'
    )


def _tick(share: float) -> str:
    return (
        f'<line x1="{_x(share)}" y1="{_y(0)}" x2="{_x(share)}" y2="{_y(1)}" stroke="#eee"/>'
        f'<line x1="{_x(0)}" y1="{_y(share)}" x2="{_x(1)}" y2="{_y(share)}" stroke="#eee"/>'
        f'<text x="{_x(share) - 8}" y="{_y(0) + 16}">{share:g}</text>'
        f'<text x="{_x(0) - 28}" y="{_y(share) + 4}">{share:g}</text>'
    )


def _x(share: float) -> float:
    return MARGIN + SIDE * share


def _y(share: float) -> float:
    return MARGIN + SIDE * (1.0 - share)
