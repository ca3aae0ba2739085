"""Inputs that once reached something new, one file a target, one base64 line an input."""

from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).with_name("corpus")
LARGEST = 2000  # bytes of an input
MOST = 150  # inputs of a target, the smallest


def kept(target: str) -> list[bytes]:
    path = FOLDER / f"{target}.txt"
    return [b64decode(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(target: str, inputs: Iterable[bytes]) -> None:
    lines = sorted({b64encode(one).decode() for one in sorted(inputs, key=len)[:MOST]})
    (FOLDER / f"{target}.txt").write_text("".join(f"{line}\n" for line in lines))
