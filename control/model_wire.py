"""Pure: engine models as JSON and back, as the coefficients or tables they are made of.

`orjson.dumps(value, default=plain)` writes one, wherever it stands in `value`; `model_in` makes it again, to
the last digit.
"""

from array import array
from collections.abc import Mapping
from typing import Any

from joulegate.domain import EngineModel
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


def plain(value: object) -> object:
    """What orjson cannot write by itself. Raises TypeError for an engine model that is not known here."""
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


def model_in(given: Json) -> EngineModel:
    """What `plain` was given. Raises KeyError or TypeError for anything else."""
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
    return EngineProfile(**{**tupled(given), **parts})


def _tables(given: Json) -> Tables:
    return Tables(**{**tupled(given), **{name: array("f", given[name]) for name in ("times", "watts")}})


def tupled(given: Json) -> dict[str, Any]:
    """Lists are tuples in our records."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
