"""Pure: YAML text into plain values that remember their place, with `${ENV}` expanded.

The node graph is read instead of ruamel's round-trip objects: a node knows where it starts and ends, repeated
keys can be reported all at once, and no tag can build anything but text, numbers, lists and mappings.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from joulegate.settings.base import Route

MAX_NODES = 100_000  # aliases multiply: a short text can stand for a huge document
MAX_DIGITS = 100  # Python itself refuses to write out one of 4300
_VARIABLE = re.compile(r"\$(?:(\$)|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\})")
_SECRET_KEY = re.compile(r"(?:^|_)(?:key|token|secret|password)$")
_SECRET_IN_LINE = re.compile(
    r"""((?:^|[\s{,"'])(?:\w+_)?(?:key|token|secret|password)["']?\s*:\s+)(?!\$\{\w+\})("[^"]*"|'[^']*'|[^\s,}#]+)"""
)
_PASSWORD_IN_URL = re.compile(r"(://)([^@/\s]+)(?=@)")
_TAG = "tag:yaml.org,2002:"
_CONSTRUCTED = {_TAG + name for name in ("int", "float", "bool", "null")}
_TEXT = {_TAG + name for name in ("str", "timestamp", "value")}


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in the text; line and column count from 1."""

    line: int
    column: int
    width: int = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a file."""

    place: Place
    path: Route
    message: str
    help: str = ""


@dataclass(slots=True)
class Document:
    """A file read once: its values, and where each of them came from. Lines are kept with secrets masked."""

    name: str
    lines: tuple[str, ...]
    value: object = None
    keys: dict[Route, Place] = field(default_factory=dict)
    values: dict[Route, Place] = field(default_factory=dict)
    variables: dict[Route, str] = field(default_factory=dict)  # environment variables a value was made of
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Route) -> Place:
        """The value's place; of a block its key; of something absent the key it should stand under."""
        while path:
            if path in self.values:
                return self.values[path]
            path = path[:-1]
        return Place(1, 1, max(1, len(self.lines[0].rstrip())) if self.lines else 1)


def is_secret(path: Route) -> bool:
    """Whether the key's name says that its value must not be shown."""
    return bool(path) and isinstance(path[-1], str) and _SECRET_KEY.search(path[-1]) is not None


def masked(line: str) -> str:
    """The line with every secret in it starred out, width kept."""
    line = _SECRET_IN_LINE.sub(lambda m: m[1] + "*" * len(m[2]), line)
    return _PASSWORD_IN_URL.sub(lambda m: m[1] + "*" * len(m[2]), line)


def read(name: str, text: str, environment: Mapping[str, str]) -> Document:
    """Parse `text`. Never raises for what the text says: everything wrong is in `problems`."""
    document = Document(name, tuple(masked(line) for line in text.splitlines()))
    try:
        _fill(document, text, environment)
    except RecursionError:
        document.problems.append(Problem(Place(1, 1), (), "nested too deeply", "is it a settings file?"))
    return document


def _fill(document: Document, text: str, environment: Mapping[str, str]) -> None:
    """Raises RecursionError."""
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        document.problems.append(_syntax_problem(error))
        return
    except YAMLError as error:
        document.problems.append(Problem(Place(1, 1), (), str(error).strip().splitlines()[0]))
        return
    if not isinstance(root, MappingNode):
        message = "the file is empty" if root is None else "expected a mapping of keys to values"
        document.problems.append(Problem(Place(1, 1), (), message, "begin with 'version: 1'"))
        return
    reader = _Reader(document, yaml, environment)
    value = reader.convert(root, ())
    document.value = value if reader.count <= MAX_NODES else None


def _syntax_problem(error: MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
    what = error.problem or error.context or "not YAML"
    help_text = ""
    if "'\\t'" in what:
        what, help_text = "a tab cannot indent YAML", "use spaces"
    elif "'@'" in what or "'`'" in what:
        help_text = "put the value in quotes"
    elif "mapping values are not allowed" in what:
        help_text = "a value with ': ' in it needs quotes; a nested key needs a line of its own"
    elif error.context and error.context_mark:
        help_text = f"{error.context}, which began on line {error.context_mark.line + 1}"
    return Problem(place, (), f"not YAML: {what}", help_text)


def _merges(key: Node) -> bool:
    return bool(key.tag == _TAG + "merge")


class _Reader:
    """One walk over the node graph."""

    def __init__(self, document: Document, yaml: YAML, environment: Mapping[str, str]) -> None:
        self._document = document
        self._yaml = yaml
        self._environment = environment
        self._open: set[int] = set()  # nodes being walked: an alias to one of them would never end
        self.count = 0  # of nodes walked; above MAX_NODES the values are not whole

    def convert(self, node: Node, path: Route) -> object:
        if not self._enters(node, path):
            return None
        self._document.values.setdefault(path, self._span(node, path))
        self._open.add(id(node))
        try:
            return self._plain(node, path)
        finally:
            self._open.discard(id(node))

    def _enters(self, node: Node, path: Route) -> bool:
        """Counts what is walked; what would not end is reported, once where it is only too much."""
        self.count += 1
        if self.count == MAX_NODES + 1:
            self._report(node, path, "too large")
        elif id(node) in self._open:
            self._report(node, path, "an alias makes this endless")
        return self.count <= MAX_NODES and id(node) not in self._open

    def _plain(self, node: Node, path: Route) -> object:
        if isinstance(node, MappingNode):
            return {key: self.convert(value, (*path, key)) for key, value in self._pairs(node, path)}
        if isinstance(node, SequenceNode):
            return [self.convert(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        raise AssertionError(f"a node of an unknown kind: {node!r}")

    def _pairs(self, node: MappingNode, path: Route) -> list[tuple[str, Node]]:
        """The mapping's own entries, then what `<<` merges in and they do not name."""
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, value in node.value:
            if _merges(key):
                for name, inner in self._merged(value, path):
                    merged.setdefault(name, inner)
                continue
            if not isinstance(key, ScalarNode):
                self._report(key, path, "a key must be plain text")
                continue
            name, place = key.value, self._span(key, ())
            if name in own:
                first = self._document.keys[(*path, name)].line
                problem = Problem(place, (*path, name), f"the key is repeated; first on line {first}")
                self._document.problems.append(problem)
                continue
            own[name] = value
            self._document.keys[(*path, name)] = place
        return [*own.items(), *((name, value) for name, value in merged.items() if name not in own)]

    def _merged(self, node: Node, path: Route) -> Iterator[tuple[str, Node]]:
        """What `<<` brings in; of two entries of one name the first counts."""
        for source in node.value if isinstance(node, SequenceNode) else [node]:
            if not isinstance(source, MappingNode):
                self._report(source, path, "'<<' merges a mapping or a list of mappings")
            elif self._enters(source, path):
                self._open.add(id(source))
                yield from (
                    (k.value, v) for k, v in source.value if isinstance(k, ScalarNode) and not _merges(k)
                )
                for _, deeper in filter(lambda entry: _merges(entry[0]), source.value):
                    yield from self._merged(deeper, path)
                self._open.discard(id(source))

    def _scalar(self, node: ScalarNode, path: Route) -> object:
        if node.tag in _CONSTRUCTED:
            if len(node.value) > MAX_DIGITS:
                self._report(node, path, f"a number of more than {MAX_DIGITS} characters")
                return None
            value: object = self._yaml.constructor.construct_object(node)
            return value
        if node.tag not in _TEXT:
            self._report(node, path, f"the tag {str(node.tag).removeprefix(_TAG)!r} is not accepted here")
            return None
        text = self._expanded(node, path)
        # `key: ${UNSET:-}` reads as an absent value, as an empty plain scalar does
        return None if not text and node.style is None else text

    def _expanded(self, node: ScalarNode, path: Route) -> str:
        used: list[str] = []

        def replace(match: re.Match[str]) -> str:
            if match[1]:
                return "$"
            found = self._environment.get(match[2])
            used.append(match[2] if found else f"{match[2]} (not set)")
            value = found or match[3]  # as in a shell: ':-' covers empty too
            if value is None:
                message = f"the environment variable {match[2]} is not set, or is empty"
                self._report(node, path, message, f"set it, or give a default: ${{{match[2]}:-value}}")
                return ""
            return value

        text = _VARIABLE.sub(replace, node.value)
        if used:
            self._document.variables[path] = ", ".join(used)
        return text

    def _report(self, node: Node, path: Route, message: str, help_text: str = "") -> None:
        self._document.problems.append(Problem(self._span(node, path), path, message, help_text))

    def _span(self, node: Node, path: Route) -> Place:
        start, end = node.start_mark, node.end_mark
        if start.line == end.line and start.column < end.column:
            return Place(start.line + 1, start.column + 1, max(1, end.column - start.column))
        key = self._document.keys.get(path)
        if key is not None:  # a block starts at its first child: its key says better where it is
            return key
        line = self._document.lines[start.line] if start.line < len(self._document.lines) else ""
        return Place(start.line + 1, start.column + 1, max(1, len(line.rstrip()) - start.column))
