"""A tree of power domains that cannot be is refused, with the place."""

from pathlib import Path

import pytest

from joulegate.errors import UserError
from joulegate.settings.gateway import Gateway
from joulegate.settings.load import load

MODELS = "models: [{name: m, pools: [{name: p, instances: [{name: i, url: 'http://x:1'}]}]}]"
AGENTS = "agents: [{name: node-1, url: 'http://n:1'}]"


def read(folder: Path, *domains: str) -> Gateway:
    path = folder / "gateway.yaml"
    listed = "".join(f"    - {{{domain}}}\n" for domain in domains)
    path.write_text(f"version: 1\n{MODELS}\n{AGENTS}\npower:\n  domains:\n{listed}")
    return load(path, Gateway)


def test_a_tree_in_any_order(tmp_path: Path) -> None:
    found = read(
        tmp_path, "name: rack, inside: row, budget_w: 900, agents: [node-1]", "name: row, budget_w: 800"
    )
    assert [domain.inside for domain in found.power.domains] == ["row", None]
    assert found.power.mode == "advise"


@pytest.mark.parametrize(
    ("domains", "says"),
    [
        (["name: a, inside: rwo, budget_w: 1", "name: row, budget_w: 1"], "no domain is called 'rwo'"),
        (["name: a, inside: b, budget_w: 1", "name: b, inside: a, budget_w: 1"], "inside itself"),
        (["name: a, inside: a, budget_w: 1"], "inside itself"),
        (["name: a, budget_w: 1", "name: a, budget_w: 2"], "there twice"),
        (["name: a, budget_w: 1, agents: [node-2]"], "no agent is called 'node-2'"),
        (["name: a, budget_w: 1, gpus: [g]", "name: b, budget_w: 1, gpus: [g]"], "there twice"),
        (["name: a, budget_w: 0"], "expected more than 0"),
    ],
)
def test_what_cannot_be(tmp_path: Path, domains: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        read(tmp_path, *domains)
