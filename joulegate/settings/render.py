"""Pure: settings as text: values in force with their origin, a schema for editors."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, SecretStr

from joulegate.settings.base import PARTIAL, Route
from joulegate.settings.locate import Document, masked

HIDDEN = "********"
Tree = dict[str | int, "Tree | Entry"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One value in force."""

    path: Route
    value: object  # a scalar, a list of scalars, or an empty container
    origin: str  # file:line, env NAME, or default

    @property
    def dotted(self) -> str:
        return ".".join(map(str, self.path))


def effective(settings: BaseModel, document: Document) -> list[Entry]:
    """Every value in force, secrets masked, in the order of the model."""
    return [Entry(path, value, _origin(document, path)) for path, value in _leaves(settings, ())]


def _leaves(value: object, path: Route) -> Iterator[tuple[Route, object]]:
    if isinstance(value, BaseModel):
        for name, field in type(value).model_fields.items():
            inner = getattr(value, name)
            if field.json_schema_extra == PARTIAL and isinstance(inner, BaseModel):
                yield from _set_only(inner, (*path, name))
            else:
                yield from _leaves(inner, (*path, name))
    elif isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    elif isinstance(value, list | tuple) and any(isinstance(v, BaseModel | Mapping | list) for v in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, _shown(value)


def _set_only(section: BaseModel, path: Route) -> Iterator[tuple[Route, object]]:
    """Of a section whose absent values are taken from elsewhere, what it sets itself."""
    if not section.model_fields_set:
        yield path, {}
    for name in (name for name in type(section).model_fields if name in section.model_fields_set):
        inner = getattr(section, name)
        if isinstance(inner, BaseModel):
            yield from _set_only(inner, (*path, name))
        else:
            yield from _leaves(inner, (*path, name))


def _shown(value: object) -> object:
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return masked(value) if isinstance(value, str) else value


def _origin(document: Document, path: Route) -> str:
    if path in document.variables:
        return f"env {document.variables[path]}"
    place = document.values.get(path)
    return f"{document.name}:{place.line}" if place else "default"


def yaml_lines(entries: list[Entry]) -> list[str]:
    """The entries as YAML, the origin of each in a comment."""
    tree: Tree = {}
    for entry in entries:
        node = tree
        for part in entry.path[:-1]:
            inner = node.setdefault(part, {})
            assert isinstance(inner, dict), entry.dotted
            node = inner
        node[entry.path[-1]] = entry
    return list(_tree_lines(tree, ""))


def _tree_lines(tree: Tree, pad: str) -> Iterator[str]:
    for key, inner in tree.items():
        head = pad + ("-" if isinstance(key, int) else f"{_scalar(key)}:")
        if isinstance(inner, Entry):
            yield f"{head} {_scalar(inner.value)}  # {inner.origin}"
        elif isinstance(key, int):
            for index, line in enumerate(_tree_lines(inner, pad + "  ")):
                yield line if index else f"{head} {line.removeprefix(pad + '  ')}"
        else:
            yield head
            yield from _tree_lines(inner, pad + "  ")


def _scalar(value: object) -> str:
    if isinstance(value, str) and value.replace("_", "").replace("-", "").isalnum() and value[0].isalpha():
        return value if value not in {"true", "false", "null"} else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)


def editor_schema(model: type[BaseModel], kind: str) -> dict[str, object]:
    """JSON schema, draft 7 (what yaml-language-server reads); any value may be `${ENV}`."""
    raw = model.model_json_schema(ref_template="#/definitions/{model}")
    definitions = raw.pop("$defs", {})
    body = _for_editors({**raw, "definitions": definitions})
    assert isinstance(body, dict)
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": f"joulegate {kind}", **body}


def _for_editors(schema: object) -> object:
    if isinstance(schema, list):
        return [_for_editors(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # draft 7 calls the schemas of a tuple's places `items`
    renamed = {"items" if key == "prefixItems" else key: _for_editors(inner) for key, inner in schema.items()}
    if isinstance(
        renamed.get("title"), str
    ):  # pydantic's own, made of the key; a property called so is a dict
        del renamed["title"]
    narrow = renamed.get("type") == "string" and ("enum" in renamed or "pattern" in renamed)
    if (narrow or renamed.get("type") in {"integer", "number", "boolean"}) and "const" not in renamed:
        about = {key: renamed.pop(key) for key in ("default", "description") if key in renamed}
        return {"anyOf": [renamed, {"type": "string", "pattern": r"\$\{"}], **about}
    return renamed
