"""Shell: a YAML file into settings, or every problem in it at once.

gateway.yaml:6:7: pools.0.objectives.tpot_mss: unknown key
   6 |       tpot_mss: 40
     |       ^^^^^^^^
  help: did you mean 'tpot_ms'? It is in milliseconds.
"""

import logging
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import SecretStr, ValidationError

from joulegate.errors import UserError
from joulegate.settings import explain, locate
from joulegate.settings.base import Fault, File, Reading, Route, Section
from joulegate.settings.locate import Document, Problem
from joulegate.settings.nearest import did_you_mean

M = TypeVar("M", bound=Section)
MAX_BYTES = 2**20  # read in a quarter of a minute
logger = logging.getLogger(__name__)


class SettingsError(UserError):
    """The file is wrong. `problems` holds each with its place; the message shows them all."""

    def __init__(self, document: Document, problems: list[Problem]) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        blocks = "\n".join(formatted(document, problem) for problem in problems)
        super().__init__(f"{document.name} has {count}\n{blocks}")
        self.document = document
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[M]):
    """Settings with the text they came from."""

    settings: M
    document: Document
    doubts: tuple[Problem, ...] = ()  # what is probably not meant


def load(path: Path, model: type[M]) -> M:
    """Read `path` as `model`. Raises SettingsError with every problem, UserError if it cannot be read."""
    return load_with_places(path, model, os.environ).settings


def load_with_places(path: Path, model: type[M], environment: Mapping[str, str]) -> Loaded[M]:
    """As `load`, and keeps where each value stands."""
    return validate(read_document(path, environment), model, path.absolute().parent)


def read_document(path: Path, environment: Mapping[str, str]) -> Document:
    """The file's values and places; what is wrong with the YAML itself is in its `problems`."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)  # a pipe or a device does not say how much it holds
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", _look_alike(path)) from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES // 2**20} MiB", "is it a settings file?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: byte {error.start}", "save it as UTF-8") from error
    return locate.read(str(path), text, environment)


def validate(document: Document, model: type[M], folder: Path) -> Loaded[M]:
    """Types first, then what the sections say about themselves. Raises SettingsError."""
    problems = list(document.problems)
    doubts: list[Problem] = []
    settings: M | None = None
    if document.value is not None:
        try:
            settings = model.model_validate(document.value, context=Reading(folder, os.path.isfile))
        except ValidationError as error:
            details = error.errors(include_url=False)
            problems += explain.problems(document, model, details)
        else:
            # a variable that is not set is no name given twice
            known = {problem.path for problem in problems}
            found = [_placed(document, path, fault) for path, fault in faults(settings, ())]
            problems += [problem for problem in found if problem.path not in known]
            if not problems and isinstance(settings, File):
                for fault in settings.misfits(Path.read_bytes):
                    (doubts if fault.doubt else problems).append(_placed(document, (), fault))
    if problems or settings is None:
        raise SettingsError(document, sorted(problems, key=lambda p: (p.place.line, p.place.column)))
    return Loaded(settings, document, tuple(doubts))


def faults(settings: Section, path: Route) -> Iterator[tuple[Route, Fault]]:
    """What every section of `settings` finds wrong with itself, with the section's own path."""
    for at, section in sections_in(settings, path):
        yield from ((at, fault) for fault in section.faults())


def open_secrets(settings: Section) -> Iterator[tuple[Route, Path]]:
    """Files with secrets that every user of the machine can read."""
    for at, section in sections_in(settings, ()):
        for name in type(section).model_fields:
            file = getattr(section, name)
            if isinstance(file, Path) and locate.is_secret((name.removesuffix("_file"),)) and _is_open(file):
                yield (*at, name), file


def sections_in(value: object, path: Route) -> Iterator[tuple[Route, Section]]:
    """`value` if it is a section, and every section inside, each with its path."""
    if isinstance(value, Section):
        yield path, value
        for name in type(value).model_fields:
            yield from sections_in(getattr(value, name), (*path, name))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from sections_in(inner, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from sections_in(inner, (*path, index))


def _is_open(file: Path) -> bool:
    return file.exists() and bool(file.stat().st_mode & stat.S_IRWXO)


def _placed(document: Document, section: Route, fault: Fault) -> Problem:
    path = (*section, *fault.path)
    return Problem(document.place(path), path, fault.message, fault.help)


def formatted(document: Document, problem: Problem) -> str:
    """The problem as a person reads it: place, key, words; source line with a caret; help."""
    place = problem.place
    key = ".".join(map(str, problem.path))
    head = f"{document.name}:{place.line}:{place.column}: {key + ': ' if key else ''}{problem.message}"
    lines = [head]
    if place.line <= len(document.lines):
        source = document.lines[place.line - 1].rstrip()
        # keep tabs so that the caret stands under its word in any terminal
        indent = "".join("\t" if c == "\t" else " " for c in source[: place.column - 1])
        caret = "^" * max(1, min(place.width, len(source) - place.column + 1))
        lines += [f"{place.line:>4} | {source}", f"     | {indent}{caret}"]
    if problem.help:
        lines.append(f"  help: {problem.help}")
    return "\n".join(lines)


def _look_alike(path: Path) -> str:
    """The file beside `path` that was probably meant."""
    try:
        with os.scandir(path.parent) as entries:
            return did_you_mean(path.name, [entry.name for entry in entries if entry.is_file()])
    except (FileNotFoundError, NotADirectoryError):
        return f"there is no folder {path.parent}"
    except OSError as error:
        return f"{path.parent}: {error.strerror}"


def read_secret(value: SecretStr | None, file: Path | None) -> str | None:
    """The secret given in place or in a file (one newline at its end is dropped); None if neither is."""
    if file is None:
        return value.get_secret_value() if value is not None else None
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the secret file {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the secret file {file} is not text", "is it the right file?") from error
    if _is_open(file):
        logger.warning("secret file is open to every user", extra={"file": str(file)})
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise UserError(f"the secret file {file} is empty")
    return secret
