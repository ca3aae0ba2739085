"""Whatever somebody writes into a settings file: it loads, or every problem has a place in the file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from joulegate.settings import locate
from joulegate.settings.load import SettingsError, formatted, validate
from joulegate.settings.registry import MODELS, model_of

CONFIGS = Path(__file__).parents[2] / "configs"
EXAMPLES = {
    "gateway": YAML(typ="safe", pure=True).load(CONFIGS / "gateway.yaml"),
    "agent": YAML(typ="safe", pure=True).load(CONFIGS / "compose/agent-emulated.yaml"),
    "fleet": YAML(typ="safe", pure=True).load(CONFIGS / "fleet.yaml"),
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
Spot = tuple[Any, Any]  # a container and a key or index in it


def spots(value: Any) -> Iterator[Spot]:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(inner, dict | list):
            yield from spots(inner)


@st.composite
def damaged(draw: st.DrawFn, kind: str) -> str:
    """An example with a few of its values replaced, removed, renamed or added to."""
    whole = json.loads(json.dumps(EXAMPLES[kind]))
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(list(spots(whole))))
        how = draw(st.sampled_from(["replace", "remove", "rename", "add"]))
        if how == "replace":
            container[key] = draw(ANYTHING)
        elif how == "add" and isinstance(container, dict):
            container[draw(st.text(max_size=8))] = draw(ANYTHING)
        else:
            old = container.pop(key)
            if how == "rename" and isinstance(container, dict):
                container[f"{key}{draw(st.characters(codec='ascii', categories=['L']))}"] = old
        if not list(spots(whole)):
            break
    return json.dumps(whole, indent=1, ensure_ascii=draw(st.booleans()))


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind in EXAMPLES])
@settings(max_examples=40, deadline=None)  # a loaded machine is no failure
@given(draw=st.data())
def test_a_damaged_file_loads_or_says_where_it_is_wrong(kind: str, draw: st.DataObject) -> None:
    text = draw.draw(damaged(kind))
    document = locate.read("x.yaml", text, {})
    lines = len(text.splitlines())
    try:
        validate(document, model_of(kind), CONFIGS)
    except SettingsError as error:
        for problem in error.problems:
            assert 1 <= problem.place.line <= lines
            assert problem.place.column >= 1
            assert problem.message
            assert "^" in formatted(document, problem)
