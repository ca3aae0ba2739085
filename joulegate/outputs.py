"""Shell: where results go: stdout as JSON; files and folders, asked for before the work that fills them."""

import os
import stat
import sys
from pathlib import Path

import orjson

from joulegate.errors import UserError


def print_json(value: object) -> None:
    """`value` on stdout, as UTF-8 whatever the terminal's encoding: JSON has no other. NaN is null."""
    sys.stdout.buffer.write(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")


def file_for(path: Path) -> Path:
    """`path`, whose folder is made if need be. Raises UserError where no file can be written."""
    folder_for(path.parent)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return path
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "name another file") from error
    if stat.S_ISDIR(mode):
        raise UserError(f"cannot write {path}: it is a folder", "name a file in it")
    if not os.access(path, os.W_OK):
        raise UserError(f"cannot write {path}: no permission", "name another file")
    return path


def write_text(path: Path, text: str) -> None:
    """Raises UserError."""
    try:
        file_for(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}", "name another file") from error


def folder_for(path: Path) -> Path:
    """`path`, made if need be. Raises UserError where it cannot be, or nothing can be written into it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}", "name another place") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into {path}: no permission", "name another place")
    return path
