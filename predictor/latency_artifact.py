"""Shell: learned latency models in one file, as `predictor.artifact` keeps it.

The header names every engine: where its model comes from, its ranges and errors, and the axes of its tables;
the tables themselves are arrays. Loading needs neither scikit-learn nor scipy.
"""

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

SCHEMA = "joulegate-latency-model/2"
LIBRARIES = ("numpy", "scipy", "scikit-learn")


def save(path: Path, models: Sequence[TableModel], data_hash: str) -> None:
    """Write `models`, learned from the data with this hash. Raises UserError where that cannot be done."""
    arrays: dict[str, artifact.Array] = {}
    for number, model in enumerate(models):
        arrays[f"times{number}"] = np.array(model.tables.times)
        arrays[f"watts{number}"] = np.array(model.tables.watts)
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
            _model(engine, found.arrays[f"times{number}"].tolist(), found.arrays[f"watts{number}"].tolist())
            for number, engine in enumerate(engines)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {error!r} in the model", "train it again") from error


def _described(model: TableModel) -> dict[str, object]:
    tables = asdict(model.tables)
    del tables["times"], tables["watts"]
    return {"trained": asdict(model.trained), "tables": tables}


def _model(engine: Mapping[str, Any], times: list[list[float]], watts: list[list[float]]) -> TableModel:
    tables, trained = engine["tables"], engine["trained"]
    ranges = {name: (float(low), float(high)) for name, (low, high) in trained["ranges"].items()}
    cells = len(tables["batch"]) * len(tables["context"]) * len(tables["tokens"])
    if not len(times) == len(watts) == cells:
        raise ValueError(f"{cells} rows expected, {len(times)} found")
    return TableModel(
        Tables(
            clocks=tuple(int(clock) for clock in tables["clocks"]),
            batch=tuple(map(float, tables["batch"])),
            context=tuple(map(float, tables["context"])),
            tokens=tuple(map(float, tables["tokens"])),
            times=tuple(array("d", row) for row in times),
            watts=tuple(array("d", row) for row in watts),
            per_sequence=float(tables["per_sequence"]),
            attention=float(tables["attention"]),
            graphs=tuple(int(graph) for graph in tables["graphs"]),
            idle_watts=float(tables["idle_watts"]),
        ),
        Trained(**{**trained, "ranges": ranges}),
    )
