"""Shell: a learned model on disk: one .npz of plain arrays, one of which is a JSON header. Never pickle.

Written beside its place and renamed, so a reader sees the old file or the new one, never half of one.
"""

import hashlib
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from joulegate import __version__
from joulegate.errors import UserError

HEADER = "header"
Array = NDArray[np.float64] | NDArray[np.float32] | NDArray[np.int64] | NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Artifact:
    """`header` is JSON (schema, what it was trained on, what it is good for); `arrays` are numeric."""

    header: Mapping[str, object]
    arrays: Mapping[str, Array]


def save(path: Path, schema: str, artifact: Artifact) -> None:
    """Write `artifact` at `path`; raises UserError where that cannot be done."""
    header = {"schema": schema, "written_by": f"joulegate {__version__}", **artifact.header}
    content = np.frombuffer(orjson.dumps(header, option=orjson.OPT_SERIALIZE_NUMPY), np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            np.savez_compressed(file, allow_pickle=False, **{HEADER: content, **artifact.arrays})
        written = Path(file.name)
        written.chmod(0o644)
        written.replace(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}", "give --out a place that can be written") from error


def load(path: Path, schema: str) -> Artifact:
    """Read what `save` wrote; raises UserError when it is not there, not whole, or another schema."""
    try:
        with path.open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", "train one with `joulegate train`") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a learned model ({error})", "train it again") from error
    try:
        header = orjson.loads(np.asarray(arrays.pop(HEADER)).tobytes())
    except (KeyError, orjson.JSONDecodeError) as error:
        raise UserError(f"{path}: no header", "train it again") from error
    if header.get("schema") != schema:
        raise UserError(f"{path}: {header.get('schema')}, need {schema}", "train it with this version")
    return Artifact(header, arrays)


def is_artifact(content: bytes) -> bool:
    """Whether a file that begins so may be one (an .npz is a zip file)."""
    return content.startswith(b"PK")


def data_hash(parts: Iterable[bytes]) -> str:
    """SHA-256 over what a model was trained on, in order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
