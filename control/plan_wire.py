"""Pure: what the planner's child is asked and answers, as JSON. Engine models go as their coefficients."""

from array import array
from collections.abc import Mapping
from typing import Any

import orjson

from control.floor import Demand
from control.planner import Kind, PlanRules
from control.provision import PoolNeed, Provision, Question, Stock
from control.state import Limits
from joulegate.domain import EngineModel, Objectives
from joulegate.engine_profile import (
    Actuation,
    EngineLimits,
    EngineProfile,
    LatencyCoefficients,
    PowerCoefficients,
)
from predictor.online_model import OnlineModel, SpeedLaw
from predictor.physics import PhysicsModel
from predictor.table import TableModel, Tables, Trained

Json = Mapping[str, Any]


def encoded(message: Question | Provision) -> bytes:
    """Raises TypeError for an engine model that is not known here."""
    return orjson.dumps(message, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)


def question_in(content: bytes) -> Question:
    """What `encoded` made of a question. Raises ValueError, KeyError or TypeError for anything else."""
    asked = orjson.loads(content)
    pools = tuple(_need(pool) for pool in asked["pools"])
    rules = PlanRules(**asked["rules"])
    return Question(pools, asked["elastic"], asked["merged"], asked["epoch"], rules)


def provision_in(content: bytes) -> Provision:
    """What `encoded` made of a plan. Raises ValueError, KeyError or TypeError for anything else."""
    plan = orjson.loads(content)
    return Provision(**{**plan, "short": tuple(plan["short"])})


def _plain(value: object) -> object:
    if isinstance(value, array):
        return value.tolist()
    if isinstance(value, PhysicsModel):
        return {"profile": value.profile}
    if isinstance(value, TableModel):
        return {"tables": value.tables, "trained": value.trained}
    if isinstance(value, OnlineModel):
        return {
            "clocks": value.clocks,
            "idle_watts": value.idle_watts,
            "coefficients": value.coefficients,
            "laws": value.laws,
            "power": value.power,
        }
    raise TypeError(f"{type(value).__name__} has no JSON")


def _model(given: Json) -> EngineModel:
    if "profile" in given:
        return PhysicsModel(_profile(given["profile"]))
    if "tables" in given:
        return TableModel(_tables(given["tables"]), Trained(**given["trained"]))
    laws = [SpeedLaw(**law) for law in given["laws"]]
    return OnlineModel(given["clocks"], given["idle_watts"], given["coefficients"], laws, given["power"])


def _profile(given: Json) -> EngineProfile:
    parts = {
        "latency": LatencyCoefficients(**given["latency"]),
        "power": PowerCoefficients(**given["power"]),
        "engine": EngineLimits(**given["engine"]),
        "actuation": Actuation(**given["actuation"]),
    }
    return EngineProfile(**{**_tupled(given), **parts})


def _tables(given: Json) -> Tables:
    rows = {name: tuple(array("d", row) for row in given[name]) for name in ("times", "watts")}
    return Tables(**{**_tupled(given), **rows})


def _need(given: Json) -> PoolNeed:
    demand = None if given["demand"] is None else Demand(**given["demand"])
    parts = {
        "objectives": Objectives(**_tupled(given["objectives"])),
        "demand": demand,
        "stock": tuple(_stock(stock) for stock in given["stock"]),
    }
    return PoolNeed(**{**_tupled(given), **parts})


def _stock(given: Json) -> Stock:
    kind = given["kind"]
    built = Kind(**{**kind, "model": _model(kind["model"]), "limits": Limits(**kind["limits"])})
    return Stock(**{**given, "kind": built})


def _tupled(given: Json) -> dict[str, Any]:
    """Lists are tuples in our records."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
