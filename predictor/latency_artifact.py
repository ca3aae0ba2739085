"""Shell: learned latency models in one file, as `predictor.artifact` keeps it.

The header names every engine: where its model comes from, its ranges and errors, and the axes of its tables;
the tables themselves are arrays. Loading needs neither scikit-learn nor scipy.
"""

import math
import platform
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from joulegate.errors import UserError
from predictor import artifact
from predictor.table import TableModel, Tables, Trained

SCHEMA = "joulegate-latency-model/3"
LIBRARIES = ("numpy", "scipy", "scikit-learn")


def save(path: Path, models: Sequence[TableModel], data_hash: str) -> None:
    """Write `models`, learned from the data with this hash. Raises UserError where that cannot be done."""
    arrays: dict[str, artifact.Array] = {}
    for number, model in enumerate(models):
        arrays[f"times{number}"] = np.array(model.tables.times, np.float32)
        arrays[f"watts{number}"] = np.array(model.tables.watts, np.float32)
    header = {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "data_sha256": data_hash,
        "engines": [_described(model) for model in models],
    }
    artifact.save(path, SCHEMA, artifact.Artifact(header, arrays))


def load(path: Path) -> tuple[TableModel, ...]:
    """Every model in the file. Raises UserError when it is missing, damaged or of another schema."""
    found = artifact.load(path, SCHEMA)
    engines: Any = found.header.get("engines")
    try:
        return tuple(
            _model(engine, _single(found.arrays[f"times{number}"]), _single(found.arrays[f"watts{number}"]))
            for number, engine in enumerate(engines)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {error!r} in the model", "train it again") from error


def _described(model: TableModel) -> dict[str, object]:
    tables = asdict(model.tables)
    del tables["times"], tables["watts"]
    return {"trained": asdict(model.trained), "tables": tables}


def _single(values: artifact.Array) -> "array[float]":
    return array("f", np.asarray(values, np.float32).tobytes())


def _model(engine: Mapping[str, Any], times: "array[float]", watts: "array[float]") -> TableModel:
    tables, trained = engine["tables"], engine["trained"]
    ranges = {name: (float(low), float(high)) for name, (low, high) in trained["ranges"].items()}
    cells = math.prod(len(tables[axis]) for axis in ("batch", "context", "tokens", "columns"))
    if not len(times) == len(watts) == cells:
        raise ValueError(f"{cells} cells expected, {len(times)} found")
    return TableModel(
        Tables(
            clocks=tuple(map(int, tables["clocks"])),
            columns=tuple(map(int, tables["columns"])),
            batch=tuple(map(float, tables["batch"])),
            context=tuple(map(float, tables["context"])),
            tokens=tuple(map(float, tables["tokens"])),
            times=times,
            watts=watts,
            per_sequence=float(tables["per_sequence"]),
            attention=float(tables["attention"]),
            graphs=tuple(int(graph) for graph in tables["graphs"]),
            idle_watts=float(tables["idle_watts"]),
        ),
        Trained(**{**trained, "ranges": ranges}),
    )
