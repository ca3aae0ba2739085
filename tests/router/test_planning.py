"""The planner's child, and what is aimed at between its answers."""

import re
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from control.floor import Demand
from control.planner import Kind, PlanRules, Stock
from control.provision import PoolNeed, Question
from control.state import Limits
from joulegate.domain import Objectives
from joulegate.settings.gateway import Gateway
from joulegate.shipped import shipped
from joulegate.units import Seconds, Watts
from predictor.physics import PhysicsModel
from router.build_fleet import read_model
from router.observe import page
from router.planning import PlanFailed, ask
from router.runtime import Runtime

ROOT = Path(__file__).parent.parent.parent
OBJECTIVES = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, 1.2)


def question() -> Question:
    profile, model = read_model(shipped("profiles/h100_llama-3.1-8b_tp1.json"))
    assert profile is not None
    assert isinstance(model, PhysicsModel)
    kind = Kind("h100", model, Limits(256, 8192, 400_000), 1, Seconds(5.0), Watts(98.0))
    demand = Demand(20.0, 600.0, 600.0, 200.0)
    pool = PoolNeed("all", (2, 2), OBJECTIVES, demand, 20.0, 1, (Stock(kind, 4, 4, Watts(70.0)),))
    return Question((pool,), {}, Seconds(300.0), PlanRules())


async def test_a_child_answers_and_ends() -> None:
    answer = await ask(question())
    assert 1 <= answer.counts["all"] <= 2
    assert answer.gap is not None


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import sys; sys.exit('out of luck')", "out of luck"),
        ("import os; os.kill(os.getpid(), 9)", "ended with -9"),
        ("raise MemoryError('no more')", "MemoryError: no more"),
    ],
)
async def test_a_child_that_fails_says_why_and_there_is_no_plan(code: str, says: str) -> None:
    with pytest.raises(PlanFailed, match=says):
        await ask(question(), (sys.executable, "-c", code))


async def test_the_metric_that_keda_asks_for_is_exported() -> None:
    text = (ROOT / "docs/scaling.md").read_text()
    block = next(
        b for b in re.findall(r"```yaml\n(.*?)```", text, re.S) if "ScaledObject" in b.partition("\n")[2][:40]
    )
    trigger = YAML(typ="safe").load(block)["spec"]["triggers"][0]
    query = re.fullmatch(r"max\((\w+)\{(.*)\}\)", trigger["metadata"]["query"])
    assert query is not None
    asked = dict(re.findall(r'(\w+)="(\w+)"', query[2]))
    instance = {"name": "i", "url": "http://127.0.0.1:1"}
    pools = [{"name": asked["pool"], "instances": [instance]}]
    runtime = Runtime(
        Gateway.model_validate({"version": 1, "models": [{"name": asked["model"], "pools": pools}]})
    )
    exported = page(runtime.registry).decode()
    await runtime.stop()
    series = next(line for line in exported.splitlines() if line.startswith(f"{query[1]}{{"))
    assert dict(re.findall(r'(\w+)="(\w+)"', series)) == asked
    assert trigger["metricType"] == "AverageValue"
    assert trigger["metadata"]["threshold"] == "1", "replicas = the metric over this"
