"""Pure: pydantic's errors as problems of a file: a place, plain words, and what to write instead."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from joulegate.settings.base import Route
from joulegate.settings.locate import Document, Problem, is_secret
from joulegate.settings.nearest import did_you_mean, nearest

UNITS = {
    "_ms": "milliseconds",
    "_s": "seconds",
    "_mhz": "MHz",
    "_pct": "percent",
    "_kib": "KiB",
    "_mib": "MiB",
    "_w": "watts",
    "_tokens": "tokens",
    "_ratio": "a share between 0 and 1",
}
_EXPECTED = {
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "literal_error": "one of {expected}",
    "enum": "one of {expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_pattern_mismatch": "text that matches {pattern}",
}


@dataclass(slots=True)
class _At:
    """What pydantic said about one path; a union says one thing per member."""

    value: object
    expected: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)


def problems(document: Document, model: type[BaseModel], errors: Iterable[ErrorDetails]) -> list[Problem]:
    """One problem per place. An unknown key that is nearly a missing one is one problem, not two."""
    known_bad = {problem.path for problem in document.problems}
    unknown: list[Route] = []
    missing: list[Route] = []
    wrong: dict[Route, _At] = {}
    for error in errors:
        path = _path(document.value, error)
        if path in known_bad or _echo(error):
            continue
        if error["type"] == "extra_forbidden":
            unknown.append(path)
        elif error["type"] in {"missing", "union_tag_not_found"}:
            missing.append(path)
        else:
            _note(wrong.setdefault(path, _At(error["input"])), error)
    keys = [_unknown_key(document, model, path, missing) for path in unknown]
    absent = [_missing_key(document, path) for path in missing]
    return [*keys, *absent, *(_wrong_value(document, model, path, at) for path, at in wrong.items())]


def _echo(error: ErrorDetails) -> bool:
    """A list is called too short when all it has is wrong: that is said of the items already."""
    found = error["input"]
    return (
        error["type"] == "too_short" and isinstance(found, list) and len(found) >= error["ctx"]["min_length"]
    )


def _path(value: object, error: ErrorDetails) -> Route:
    """Where in the file: pydantic's location without the names of union members, with the key of a choice."""
    path: list[str | int] = []
    last = len(error["loc"]) - 1
    for index, part in enumerate(error["loc"]):
        match value, part:
            case dict(), str() if part in value:
                value = value[part]
            case list(), int() if part < len(value):
                value = value[part]
            case _ if index < last or error["type"] != "missing":
                continue
        path.append(part)
    if error["type"].startswith("union_tag"):
        path.append(str(error["ctx"]["discriminator"]).strip("'"))
    return tuple(path)


def _note(at: _At, error: ErrorDetails) -> None:
    context: Mapping[str, Any] = error.get("ctx", {})
    template = _EXPECTED.get(error["type"])
    if template is None:
        at.said.append(str(context.get("error", error["msg"])))
        return
    at.expected.append(template.format_map(context))
    listed = context.get("expected_tags") or context.get("expected")
    if listed:
        at.choices += [choice.strip("'") for choice in listed.replace(" or ", ", ").split(", ")]
    if error["type"] == "union_tag_invalid":
        at.value = context["tag"]


def _unknown_key(document: Document, model: type[BaseModel], path: Route, missing: list[Route]) -> Problem:
    parent, word = path[:-1], str(path[-1])
    accepted = list(dict.fromkeys(key for section in sections(model, parent) for key in section.model_fields))
    siblings = [str(other[-1]) for other in missing if other[:-1] == parent]
    meant = nearest(word, siblings) or _other_unit(word, accepted) or nearest(word, accepted)
    if meant in siblings:
        missing.remove((*parent, meant))
    unit = unit_of(meant) if meant else ""
    help_text = f"did you mean {meant!r}?" if meant else f"accepted here: {', '.join(accepted)}"
    if unit and unit != unit_of(word):
        help_text += f" It is in {unit}."
    return Problem(document.keys.get(path) or document.place(path), path, "unknown key", help_text)


def _other_unit(word: str, accepted: Iterable[str]) -> str | None:
    """`ttft` or `ttft_s` where `ttft_ms` is the key."""
    stem = _stem(word)
    return next((key for key in accepted if unit_of(key) and _stem(key) == stem), None)


def _stem(key: str) -> str:
    return key.rpartition("_")[0] if unit_of(key) else key


def unit_of(key: str) -> str:
    """The unit that the key's ending names, in words; empty when it names none."""
    return next((unit for suffix, unit in UNITS.items() if key.endswith(suffix)), "")


def sections(model: type[BaseModel], path: Route) -> list[type[BaseModel]]:
    """The models that may stand at `path`: more than one under a union."""
    here: list[type[BaseModel]] = [model]
    for part in path:
        if isinstance(part, str):
            inner = [found for section in here if (found := section.model_fields.get(part))]
            if inner:
                here = [model for found in inner for model in _models_in(found.annotation)]
    return here


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _missing_key(document: Document, path: Route) -> Problem:
    unit = unit_of(str(path[-1]))
    help_text = f"add '{path[-1]}:'" + (f", in {unit}" if unit else "")
    if path == ("version",):
        help_text = "begin the file with 'version: 1'"
    return Problem(document.place(path[:-1]), path, "is missing", help_text)


def _wrong_value(document: Document, model: type[BaseModel], path: Route, at: _At) -> Problem:
    found = "a value that is not shown" if is_secret(path) else _shown(at.value)
    said = [*at.said]
    if at.expected:
        said.insert(0, f"expected {' or '.join(dict.fromkeys(at.expected))}, found {found}")
    unit = unit_of(str(path[-1])) if path else ""
    help_text = did_you_mean(str(at.value), at.choices)
    if at.value is None and at.expected:
        help_text = "write its value, or remove the line"
    if unit and isinstance(at.value, str):
        help_text = f"write the number alone: the key is in {unit}"
    return Problem(document.place(path), path, "; ".join(said), help_text or _about(model, path))


def _about(model: type[BaseModel], path: Route) -> str:
    """What the setting at `path`, or the one whose list it stands in, is for."""
    while path and not isinstance(path[-1], str):
        path = path[:-1]
    named = (
        [section.model_fields.get(str(path[-1])) for section in sections(model, path[:-1])] if path else []
    )
    return next((found.description for found in named if found and found.description), "")


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else f"a list of {len(value)}"
    return repr(value)[:80]
