"""Pure: the demo's live table, from what the gateway says of itself."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]


def screen(ours: Json, watts_default: float, seconds: float, saved_ratio: float | None) -> Group:
    """One picture: a row a pool, the other fleet below, the last decision as a sentence."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for index, name in enumerate(
        ("pool", "running", "waiting", "TTFT p99 / goal", "TPOT p99 / goal", "clock target/actual MHz", "W")
    ):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    total = 0.0
    for pool in _pools(ours):
        watts = sum(i["watts"] or 0.0 for i in pool["instances"])
        total += watts
        table.add_row(*_row(pool, watts))
    table.add_row("default clocks", "", "", "", "", "the same arrivals, no ceiling", f"{watts_default:.0f}")
    saved = "" if saved_ratio is None else f"   so far {100 * saved_ratio:.1f} % less energy (simulated)"
    return Group(
        Text.assemble(
            ("joulegate demo", "bold"), f"   emulated H100s   t={seconds:.0f} s   {total:.0f} W{saved}"
        ),
        table,
        Text(f"last: {latest(ours)}", style="dim", overflow="ellipsis", no_wrap=True),
    )


def latest(ours: Json) -> str:
    """The latest decision that changed something."""
    sentences = ours.get("latest", [])
    return sentences[0] if sentences else "none yet"


def line(ours: Json, watts_default: float, seconds: float) -> str:
    """One line where nobody watches a screen."""
    total = sum(i["watts"] or 0.0 for pool in _pools(ours) for i in pool["instances"])
    return (
        f"t={seconds:.0f} s: {total:.0f} W under Joulegate, {watts_default:.0f} W at default; {latest(ours)}"
    )


def _pools(picture: Json) -> list[Json]:
    return [pool for model in picture.get("models", []) for pool in model["pools"]]


def _row(pool: Json, watts: float) -> list[str]:
    promised = pool["objectives"]
    goals = [t for t, used in zip(promised["ttft_s"], _inputs(pool), strict=True) if used]
    clocks = " ".join(f"{i['target_mhz'] or '-'}/{i['clock_mhz'] or '?'}" for i in pool["instances"])
    return [
        pool["name"],
        str(pool["running"]),
        str(pool["queued"]),
        f"{_ms(pool['ttft_p99_s'])} / {'|'.join(f'{1e3 * g:.0f}' for g in goals)} ms",
        f"{_ms(pool['tpot_p99_s'])} / {1e3 * promised['tpot_s']:.0f} ms",
        clocks,
        f"{watts:.0f}",
    ]


def _inputs(pool: Json) -> list[bool]:
    """Which input sizes the pool serves."""
    return [any(kind.startswith(size) for kind in pool["types"]) for size in "SML"]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.0f}"
