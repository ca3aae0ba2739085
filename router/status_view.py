"""Pure: `joulegate status` for a terminal."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Json = dict[str, Any]
COLUMNS = ("instance", "state", "running", "waiting", "target MHz", "MHz", "W", "saved")


def view(picture: Json) -> RenderableType:
    """A table a pool, the governors' latest sentences, then the agents."""
    parts: list[RenderableType] = []
    for model in picture["models"]:
        for pool in model["pools"]:
            parts.append(_pool(model["name"], pool))
    parts += [_agent(agent) for agent in picture["agents"]]
    if picture["power"] is not None:
        parts += _power(picture["power"])
    return Group(*parts)


def _pool(model: str, pool: Json) -> RenderableType:
    mode = f"paused ({pool['paused']})" if pool["paused"] else pool["mode"]
    title = Text.assemble(
        (f"{model} / {pool['name']}", "bold"),
        f"  {mode}  {pool['queued']} queued",
        f"  TTFT p99 {_ms(pool['ttft_p99_s'])} of {_promised(pool)}",
        f"  TPOT p99 {_ms(pool['tpot_p99_s'])} of {_ms(pool['objectives']['tpot_s'])}",
    )
    table = Table(box=None, header_style="dim", pad_edge=False)
    for index, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    for instance in pool["instances"]:
        table.add_row(*map(Text, _cells(instance)))
    sentences = [
        Text(f"  {instance['clocks_left_alone'] or instance['decision']}", style="dim")
        for instance in pool["instances"]
        if instance["clocks_left_alone"] or instance["decision"]
    ]
    return Group(title, table, *sentences)


def _cells(instance: Json) -> list[str]:
    joules, baseline = instance["joules"], instance["baseline_joules_estimated"]
    saved = f"{100 * (1 - joules / baseline):.0f} % est." if baseline > 0 else ""
    return [
        instance["name"],
        instance["why_not"] or instance["health"],
        str(instance["running"]),
        _or(instance["engine_waiting"]),
        _or(instance["target_mhz"], "default"),
        _or(instance["clock_mhz"]),
        _or(None if instance["watts"] is None else round(instance["watts"])),
        saved,
    ]


def _agent(agent: Json) -> Text:
    if not agent["up"]:
        return Text.assemble(f"agent {agent['name']}: ", ("down", "red"), f" ({agent['problem']})")
    lease = "holds the lease" if agent["lease"] else "no lease"
    caps = f", power caps on {len(agent['caps_w'])}" if agent["caps_w"] else ""
    return Text(f"agent {agent['name']}: up, {len(agent['gpus'])} GPUs, {lease}{caps}")


def _power(power: Json) -> list[Text]:
    """A line a domain."""
    words = f"power budgets ({power['mode']}): {power['phase']}, at {100 * power['budgets_at_ratio']:.0f} %"
    lines = [Text(words)]
    for domain in power["domains"]:
        line = f"  {domain['name']}: {domain['watts']:.0f} W of {domain['limit_w']:.0f} W"
        lines.append(Text(line + (", not to be kept by caps" if domain["unmet"] else "")))
    lines += [Text(f"  no caps on {agent}: {why}", "red") for agent, why in power["caps_refused"].items()]
    return lines


def _promised(pool: Json) -> str:
    return "/".join(f"{t * 1e3:.0f}" for t in pool["objectives"]["ttft_s"]) + " ms"


def _ms(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds * 1e3:.0f} ms"


def _or(value: object, otherwise: str = "?") -> str:
    return otherwise if value is None else str(value)
