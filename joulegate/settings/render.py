"""Pure: settings as text: values in force with their origin, a schema for editors, a table for people."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from joulegate.settings.base import PARTIAL, Route
from joulegate.settings.locate import Document, masked

HIDDEN = "********"
_TYPE_NAMES = {
    "number": "number",
    "integer": "whole number",
    "boolean": "true or false",
    "string": "text",
    "object": "mapping",
    "null": "null",
}
Node = dict[str, Any]  # of a JSON schema
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
            if PARTIAL in field.metadata and isinstance(inner, BaseModel):
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
    """JSON schema, draft 7 (what yaml-language-server reads); a number may also be written as `${ENV}`."""
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
    if renamed.get("type") in {"integer", "number", "boolean"} and "const" not in renamed:
        about = {key: renamed.pop(key) for key in ("default", "description") if key in renamed}
        return {"anyOf": [renamed, {"type": "string", "pattern": r"\$\{"}], **about}
    return renamed


def settings_table(model: type[BaseModel]) -> list[str]:
    """A Markdown table of every setting: path, what it takes, its default, what it means."""
    schema = model.model_json_schema(mode="validation")
    rows = ["| setting | takes | default | |", "|---|---|---|---|"]
    for path, node, required in _rows(schema, schema, ""):
        default = "required" if required else f"`{json.dumps(node.get('default'), ensure_ascii=False)}`"
        rows.append(f"| `{path}` | {_takes(node, schema)} | {default} | {node.get('description', '')} |")
    return rows


def _rows(node: Node, root: Node, prefix: str) -> Iterator[tuple[str, Node, bool]]:
    for name, field in node.get("properties", {}).items():
        path = f"{prefix}{name}"
        inner = _section(field, root)
        if inner is None:
            yield path, field, name in node.get("required", ())
            continue
        section, suffix = inner
        yield from _rows(section, root, f"{path}{suffix}.")


def _section(field: Node, root: Node) -> tuple[Node, str] | None:
    """The section a field holds, and `[]` or `.NAME` when it holds several."""
    for option in (field, *field.get("anyOf", ()), *field.get("allOf", ())):
        if "$ref" in option:
            target = root["$defs"][option["$ref"].rpartition("/")[2]]
            return (target, "") if "properties" in target else None
        for key, suffix in (("items", "[]"), ("additionalProperties", ".NAME")):
            inner = option.get(key)
            if isinstance(inner, dict) and (found := _section(inner, root)):
                return found[0], suffix + found[1]
    return None


def _takes(node: Node, root: Node) -> str:
    if "$ref" in node:
        return _takes(root["$defs"][node["$ref"].rpartition("/")[2]], root)
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_takes(option, root) for option in node["anyOf"]))
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{choice}`" for choice in node["enum"])
    if node.get("type") == "array":
        places = node.get("prefixItems")
        return f"list of {len(places)}" if places else f"list of {_takes(node.get('items', {}), root)}"
    return _simple(node)


def _simple(node: Node) -> str:
    if node.get("format") in {"path", "file-path"}:
        return "path"
    if node.get("format") == "password":
        return "secret"
    name = _TYPE_NAMES.get(str(node.get("type")), "value")
    low, high, above = (node.get(key) for key in ("minimum", "maximum", "exclusiveMinimum"))
    if low is not None and high is not None:
        return f"{name}, {low:g} to {high:g}"
    if low is not None:
        return f"{name}, at least {low:g}"
    return name if above is None else f"{name}, above {above:g}"
