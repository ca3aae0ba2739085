"""The pages say what the program does. `python tests/test_docs.py` rewrites the generated ones."""

import ast
import importlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from joulegate.cli import COMMANDS, Command
from joulegate.settings import locate
from joulegate.settings.base import Section
from joulegate.settings.explain import sections
from joulegate.settings.load import validate
from joulegate.settings.registry import MODELS, model_of
from joulegate.settings.render import editor_schema
from router.observe import COUNTERS, GAUGES, HISTOGRAMS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "deploy").rglob("*.md")])
BY = "<!-- made by `python tests/test_docs.py`: change the code, not this page -->\n"
Node = dict[str, Any]  # of a JSON schema
TYPE_NAMES = {
    "number": "number",
    "integer": "whole number",
    "boolean": "true or false",
    "string": "text",
    "object": "mapping",
    "null": "null",
}


# --- generated pages


def settings_page() -> str:
    parts = [
        f"# Settings\n\n{BY}\nEvery setting of every file, with its default. `[]` is a list, `NAME` a key of "
        "your own. How files are read: [guide](guide.md#check-settings-before-they-run)."
    ]
    for kind in MODELS:
        rows = ["| setting | takes | default | |", "|---|---|---|---|"]
        parts.append("\n".join([f"## {kind}.yaml", "", *rows, *settings_rows(kind)]))
    return "\n\n".join(parts) + "\n"


def settings_rows(kind: str) -> Iterator[str]:
    schema = model_of(kind).model_json_schema()
    for path, node, required in rows(schema, schema, ""):
        if node.get("x-partial"):
            node = {**node, "default": {}}
        default = "required" if required else f"`{json.dumps(node.get('default'), ensure_ascii=False)}`"
        about = node.get("description", "").replace("|", "\\|")
        yield f"| `{path}` | {takes(node, schema)} | {default} | {about} |"


def rows(node: Node, root: Node, prefix: str) -> Iterator[tuple[str, Node, bool]]:
    for name, field in node.get("properties", {}).items():
        inner = [] if field.get("x-partial") else list(held(field, root, ""))
        if not inner:
            yield f"{prefix}{name}", field, name in node.get("required", ())
        for section, suffix in inner:
            yield from rows(section, root, f"{prefix}{name}{suffix}.")


def held(field: Node, root: Node, suffix: str) -> Iterator[tuple[Node, str]]:
    """The sections a field holds, with `[]` or `.NAME` when it holds several."""
    if "$ref" in field:
        target = root["$defs"][field["$ref"].rpartition("/")[2]]
        if "properties" in target:
            yield target, suffix
    for option in (*field.get("anyOf", ()), *field.get("oneOf", ())):
        yield from held(option, root, suffix)
    for key, mark in (("items", "[]"), ("additionalProperties", ".NAME")):
        if isinstance(field.get(key), dict):
            yield from held(field[key], root, suffix + mark)


def takes(node: Node, root: Node) -> str:
    if node.get("x-partial"):
        return "any of its keys"
    if "$ref" in node:
        return takes(root["$defs"][node["$ref"].rpartition("/")[2]], root)
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(takes(option, root) for option in node["anyOf"]))
    if "const" in node or "enum" in node:
        return ", ".join(f"`{choice}`" for choice in node.get("enum", [node.get("const")]))
    if node.get("type") == "array":
        places = node.get("prefixItems")
        return f"list of {len(places)}" if places else f"list of {takes(node.get('items', {}), root)}"
    return simple(node)


def simple(node: Node) -> str:
    formats = {"path": "path", "file-path": "path", "password": "secret"}
    name = formats.get(str(node.get("format"))) or TYPE_NAMES.get(str(node.get("type")), "value")
    low, high, above = (node.get(key) for key in ("minimum", "maximum", "exclusiveMinimum"))
    if low is not None and high is not None:
        return f"{name}, {low:g} to {high:g}"
    if low is not None:
        return f"{name}, at least {low:g}"
    return name if above is None else f"{name}, above {above:g}"


def metrics_page() -> str:
    parts = [f"# Metrics\n\n{BY}\nPrometheus text format, one process a port.", "## Gateway, `/metrics`"]
    lines = ["| metric | type | labels | |", "|---|---|---|---|"]
    for suffix, kind, declared in (
        ("_total", "counter", COUNTERS),
        ("", "gauge", GAUGES),
        ("", "histogram", HISTOGRAMS),
    ):
        for name, what in declared.items():
            labels = ", ".join(f"`{label}`" for label in what.labels)
            lines.append(f"| `{name}{suffix}` | {kind} | {labels} | {what.help} |")
    lines.append("| `joulegate_build_info` | info | `version` | The gateway's version. |")
    agent = ["| metric | type | labels | |", "|---|---|---|---|", *agent_metrics()]
    return "\n\n".join([*parts, "\n".join(lines), "## Agent, `/metrics`", "\n".join(agent)]) + "\n"


def agent_metrics() -> Iterator[str]:
    """The agent declares its families where it fills them."""
    tree = ast.parse((ROOT / "gpu_agent/metrics.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            kind, family, _ = node.func.id.partition("MetricFamily")
            if family:
                name, about = (ast.literal_eval(argument) for argument in node.args[:2])
                given = [ast.literal_eval(word.value) for word in node.keywords if word.arg == "labels"]
                labels = ", ".join(f"`{label}`" for names in given for label in names)
                suffix = "_total" if kind == "Counter" else ""
                yield f"| `{name}{suffix}` | {kind.lower()} | {labels} | {about} |"


def schema_file(kind: str) -> str:
    return json.dumps(editor_schema(model_of(kind), kind), indent=2, ensure_ascii=False) + "\n"


def generated() -> dict[Path, str]:
    pages = {DOCS / "settings.md": settings_page(), DOCS / "metrics.md": metrics_page()}
    return pages | {ROOT / f"configs/schema/{kind}.json": schema_file(kind) for kind in MODELS}


@pytest.mark.parametrize("path", generated(), ids=lambda p: p.name)
def test_generated_pages_are_current(path: Path) -> None:
    assert path.read_text() == generated()[path], "run: python tests/test_docs.py"


# --- written pages


def code_blocks(page: Path, language: str) -> list[str]:
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [
        re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
        for indent, lang, text in found
        if lang == language
    ]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def command_lines() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for block in code_blocks(page, "sh"):
            yield from ((page, line) for line in block.splitlines() if line.startswith("joulegate "))
        inline = re.findall(r"`(joulegate [^`]+)`", page.read_text())
        yield from ((page, line) for line in inline if "COMMAND" not in line)


def named(words: list[str]) -> tuple[Command, list[str]]:
    """The command of a line, and what is given to it."""
    for count in (2, 1):
        if " ".join(words[:count]) in COMMANDS:
            return COMMANDS[" ".join(words[:count])], words[count:]
    raise AssertionError(f"no such command: {' '.join(words)}")


@pytest.mark.parametrize(("page", "line"), [pytest.param(p, li, id=li) for p, li in command_lines()])
def test_commands_in_the_pages_exist(page: Path, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if words[0].startswith("-"):
        assert words[0] in {"--help", "--version", "--verbose"}
        return
    command, arguments = named(words)
    module, _, name = command.target.partition(":")
    app = typer.Typer(add_completion=False)
    app.command()(getattr(importlib.import_module(module), name))
    params = typer.main.get_command(app).params
    options = {option for p in params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
    assert {a for a in arguments if a.startswith("-")} <= options, page


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_yaml_in_the_pages_is_good(page: Path) -> None:
    for block in code_blocks(page, "yaml"):
        if not block.startswith("version: 1"):
            continue
        document = locate.read(str(page), block, {"TEAM_A_KEY": "k"})
        kind = "agent" if "\ndevice:" in block else "gateway"
        assert validate(document, model_of(kind), ROOT).settings.version == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_metrics_in_the_pages_exist(page: Path) -> None:
    known = set(re.findall(r"^\| `(joulegate_\w+)`", metrics_page(), re.MULTILINE))
    known |= {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "count", "sum")}
    assert set(re.findall(r"\bjoulegate_\w+", page.read_text())) <= known


def test_the_readme_names_the_commands_and_the_pages() -> None:
    text = (ROOT / "README.md").read_text()
    pages = [str(page.relative_to(ROOT)) for page in [*ROOT.glob("*.md"), *DOCS.glob("*.md")]]
    for needed in ("scripts/demo", "scripts/test", *pages):
        assert needed in text or needed == "README.md", needed


@pytest.mark.parametrize("page", sorted((DOCS / "decisions").glob("*.md")), ids=lambda p: p.name)
def test_a_decision_is_short_and_complete(page: Path) -> None:
    text = page.read_text()
    assert re.match(r"\d{4}-[a-z0-9-]+\.md$", page.name)
    assert text.startswith(f"# {page.name[:4]}")
    assert len(text.splitlines()) < 40
    assert all(word in text.lower() for word in ("context", "decision", "consequences"))


def test_no_two_decisions_share_a_number() -> None:
    numbers = [page.name[:4] for page in (DOCS / "decisions").glob("*.md")]
    assert len(numbers) == len(set(numbers))


def every_section(model: type[Section], seen: set[type]) -> Iterator[type[Section]]:
    if model not in seen:
        seen.add(model)
        yield model
        for name in model.model_fields:
            for inner in sections(model, (name,)):
                if issubclass(inner, Section) and inner is not model:
                    yield from every_section(inner, seen)


@pytest.mark.parametrize("kind", MODELS)
def test_a_secret_is_called_like_one(kind: str) -> None:
    """Masking goes by name: a setting that holds a secret must have a name that says so."""
    for section in every_section(model_of(kind), set()):
        for name, field in section.model_fields.items():
            if "SecretStr" in str(field.annotation):
                assert locate.is_secret((name,)) or name.endswith("_url"), (section, name)


READERS = {"gateway": "router", "agent": "gpu_agent", "fleet": "simulator", "scenario": "simulator"}


@pytest.mark.parametrize("kind", MODELS)
def test_every_setting_is_read_by_somebody(kind: str) -> None:
    folders = (ROOT / READERS[kind], ROOT / "joulegate/settings")
    source = "".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    for section in every_section(model_of(kind), set()):
        for name in section.model_fields.keys() - {"version", "kind"}:
            assert re.search(rf"\.{name}\b", source), f"{section.__name__}.{name} does nothing"


if __name__ == "__main__":
    for file, text in generated().items():
        file.write_text(text)
