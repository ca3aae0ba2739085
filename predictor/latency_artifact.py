"""Shell: learned latency models in files: JSON for people, and an npz beside it for the tables.

    MODEL.json          schema, engines, ranges, errors, hash of the data, versions, name and hash of the npz
    MODEL-<hash>.npz    float64 tables, no pickles

The npz is named after its content and the JSON is renamed into place last, so a reader sees the old model
or the new one, never half of each. Loading needs neither scikit-learn nor scipy.
"""

import hashlib
import io
import json
import os
import platform
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from joulegate import __version__
from joulegate.errors import UserError
from predictor.table import TableModel, Tables, Trained

SCHEMA = "joulegate-latency-model/1"
LIBRARIES = ("numpy", "scipy", "scikit-learn")


def save(path: Path, models: Sequence[TableModel], data_hash: str) -> None:
    """Write `path` (JSON) and its npz; an older npz of the same model goes once the new JSON is in place."""
    before = _arrays_of(path)
    arrays: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
    for number, model in enumerate(models):
        arrays[f"times{number}"] = np.array(model.tables.times)
        arrays[f"watts{number}"] = np.array(model.tables.watts)
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **arrays)
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    npz = path.with_name(f"{path.stem}-{digest[:12]}.npz")
    document = {
        "schema": SCHEMA,
        "joulegate": __version__,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "data_sha256": data_hash,
        "arrays": npz.name,
        "arrays_sha256": digest,
        "engines": [_described(model) for model in models],
    }
    _replace(npz, packed.getvalue())
    _replace(path, json.dumps(document, indent=1).encode() + b"\n")
    if before is not None and before != npz:
        before.unlink(missing_ok=True)


def load(path: Path) -> tuple[TableModel, ...]:
    """Every model in the file. Raises UserError when it is missing, damaged or of another schema."""
    document = _document(path)
    if document.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a latency model ({SCHEMA})", "joulegate train latency makes one")
    try:
        packed = path.with_name(Path(str(document["arrays"])).name).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: its tables cannot be read: {error}", "keep the .npz beside the .json"
        ) from error
    if hashlib.sha256(packed).hexdigest() != document["arrays_sha256"]:
        raise UserError(f"{path}: its tables are damaged or of another model", "train it again")
    try:
        with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            return tuple(
                _model(engine, arrays[f"times{number}"].tolist(), arrays[f"watts{number}"].tolist())
                for number, engine in enumerate(document["engines"])
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


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "joulegate train latency makes a model") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}", "joulegate train latency makes a model") from error
    return document if isinstance(document, dict) else {}


def _arrays_of(path: Path) -> Path | None:
    if not path.exists():
        return None
    name = _document(path).get("arrays")
    return path.with_name(Path(name).name) if isinstance(name, str) else None


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
