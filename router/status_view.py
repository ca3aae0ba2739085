"""Pure: `joulegate status` as a table."""

from typing import Any

from rich.table import Table

Json = dict[str, Any]


def table(picture: Json) -> Table:
    """One row an instance, under a row for its pool."""
    view = Table(title=f"gateway {picture['gateway']}", title_justify="left", header_style="bold")
    for name, right in (("", False), ("state", False), ("running", True), ("waiting", True)):
        view.add_column(name, justify="right" if right else "left")
    for name in ("TTFT p99", "TPOT p99", "clock MHz", "W"):
        view.add_column(name, justify="right")
    view.add_column("because")
    for model in picture["models"]:
        for pool in model["pools"]:
            _pool(view, model["name"], pool)
    for agent in picture["agents"]:
        state = "up" if agent["up"] else f"[red]down[/red]: {agent['problem']}"
        view.add_row(f"agent {agent['name']}", state)
    return view


def _pool(view: Table, model: str, pool: Json) -> None:
    mode = f"paused: {pool['paused']}" if pool["paused"] else pool["mode"]
    view.add_row(
        f"[bold]{model} / {pool['name']}[/bold]",
        mode,
        str(pool["running"]),
        str(pool["queued"]),
        _ms(pool["ttft_p99_s"]),
        _ms(pool["tpot_p99_s"]),
    )
    for instance in pool["instances"]:
        target, clock = instance["target_mhz"], instance["clock_mhz"]
        view.add_row(
            f"  {instance['name']}",
            instance["why_not"] or instance["health"],
            str(instance["running"]),
            str(instance["engine_waiting"] if instance["engine_waiting"] is not None else "?"),
            "",
            "",
            f"{target or 'default'} / {clock or '?'}",
            "?" if instance["watts"] is None else f"{instance['watts']:.0f}",
            instance["clocks_left_alone"] or instance["decision"],
        )


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.0f} ms"
