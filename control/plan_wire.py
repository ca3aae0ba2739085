"""Pure: what the planner's child is asked and answers, as JSON."""

import orjson

from control.floor import Demand
from control.model_wire import Json, model_in, plain, tupled
from control.planner import Kind, PlanRules, Stock
from control.provision import PoolNeed, Provision, Question
from control.state import Limits
from joulegate.domain import Objectives


def encoded(message: Question | Provision) -> bytes:
    """Raises TypeError for an engine model that is not known here."""
    return orjson.dumps(message, default=plain, option=orjson.OPT_SERIALIZE_NUMPY)


def question_in(content: bytes) -> Question:
    """What `encoded` made of a question. Raises ValueError, KeyError or TypeError for anything else."""
    asked = orjson.loads(content)
    pools = tuple(_need(pool) for pool in asked["pools"])
    rules = PlanRules(**asked["rules"])
    return Question(pools, asked["merged"], asked["epoch"], rules)


def provision_in(content: bytes) -> Provision:
    """What `encoded` made of a plan. Raises ValueError, KeyError or TypeError for anything else."""
    plan = orjson.loads(content)
    return Provision(**{**plan, "short": tuple(plan["short"])})


def _need(given: Json) -> PoolNeed:
    demand = None if given["demand"] is None else Demand(**given["demand"])
    parts = {
        "objectives": Objectives(**tupled(given["objectives"])),
        "demand": demand,
        "stock": tuple(_stock(stock) for stock in given["stock"]),
    }
    return PoolNeed(**{**tupled(given), **parts})


def _stock(given: Json) -> Stock:
    kind = given["kind"]
    built = Kind(**{**kind, "model": model_in(kind["model"]), "limits": Limits(**kind["limits"])})
    return Stock(**{**given, "kind": built})
