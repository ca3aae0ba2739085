"""A question to the planner's child arrives as it was asked, whatever the engine's model is."""

from array import array

import pytest

from control.floor import Demand
from control.plan_wire import encoded, provision_in, question_in
from control.planner import Kind, PlanRules, Stock
from control.provision import PoolNeed, Provision, Question
from control.state import Limits
from joulegate.domain import Batch, EngineModel, Objectives
from joulegate.shipped import shipped
from joulegate.units import MegaHertz, Seconds, Watts
from predictor.online_model import OnlineModel, SpeedLaw
from predictor.table import TableModel, Tables, Trained
from router.build_fleet import read_model

_, PHYSICS = read_model(shipped("profiles/h100_llama-3.1-8b_tp1.json"))
ONLINE = OnlineModel(
    (MegaHertz(900), MegaHertz(1800)),
    Watts(60.0),
    (0.01, 1e-4, 1e-8, 1e-5),
    [SpeedLaw(0.4, 0.6)] * 14,
    [(900.0, 150.0), (1800.0, 300.0)],
)
TABLE = TableModel(
    Tables(
        clocks=(900, 1800),
        columns=(900, 1800),
        batch=(1.0, 8.0),
        context=(0.0, 1000.0),
        tokens=(0.0, 100.0),
        times=array("f", [seconds + 0.001 * i for i in range(8) for seconds in (0.02, 0.01)]),
        watts=array("f", [watts + i for i in range(8) for watts in (100.0, 200.0)]),
        per_sequence=1e-5,
        attention=1e-9,
        graphs=(1, 2, 4, 8),
        idle_watts=60.0,
    ),
    Trained("engine", 10, {"batch": (1.0, 8.0)}, 0.01, 0.02, None, None, 0.5),
)
WORK = (Batch(1, 100.0), Batch(5, 700.0, 60, 1800.0), Batch(30, 9000.0, 300, 45_000.0))


def question(model: EngineModel) -> Question:
    kind = Kind("a kind", model, Limits(256, 8192, None), 2, Seconds(5.0), Watts(98.0))
    objectives = Objectives((Seconds(0.25), Seconds(0.4), Seconds(2.0)), Seconds(0.1), None, 1.2)
    stock = (Stock(kind, 4, 3, Watts(70.0), 12.5),)
    busy = PoolNeed(
        "a", (1, 2), objectives, Demand(2.0, 60.0, 70.0, 80.0), 3.0, 1, stock, ("enforce", None, True)
    )
    idle = PoolNeed("b", (2, 2), objectives, None, 0.0, 0, stock)
    return Question((busy, idle), {"a": "b"}, Seconds(300.0), PlanRules(kv_share=0.5))


@pytest.mark.parametrize("model", [PHYSICS, ONLINE, TABLE], ids=lambda model: type(model).__name__)
def test_a_question_arrives_as_it_was_asked(model: EngineModel) -> None:
    asked = question(model)
    read = question_in(encoded(asked))

    assert encoded(read) == encoded(asked)
    assert read.pools[0].terms == asked.pools[0].terms
    assert read.pools[1].takes(read.pools[1])
    assert (read.merged, read.rules, read.epoch) == (asked.merged, asked.rules, asked.epoch)
    arrived = read.pools[0].stock[0].kind.model
    assert (arrived.clocks, arrived.idle_watts) == (model.clocks, model.idle_watts)
    for batch in WORK:
        for clock in model.clocks:
            assert arrived.iteration_time(batch, clock) == model.iteration_time(batch, clock)
            assert arrived.watts(batch, clock) == model.watts(batch, clock)


def test_an_answer_arrives_as_it_was_given() -> None:
    plan = Provision({"a": 2}, {"b": "a"}, 123.4, None, ("a",))
    assert provision_in(encoded(plan)) == plan


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"short": 1}'])
def test_what_is_no_plan_is_refused(content: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        provision_in(content)
