"""Clocks are set only where an instance was seen to work on the GPUs that its settings name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.standing import Site

Until = Callable[[Callable[[], object]], None]
TOP = 1980


def swapped(document: dict[str, Any]) -> None:
    """The first two instances are said to run on each other's GPU."""
    one, other = document["models"][0]["pools"][0]["instances"]
    one["gpus"], other["gpus"] = other["gpus"], one["gpus"]


@pytest.fixture
def mistaken(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path, "enforce", edit=swapped)
    yield found
    found.close()


def state(site: Site, name: str) -> object:
    mapping = site.fleet()[name]["mapping"]
    assert isinstance(mapping, dict)
    return mapping["state"]


def test_gpus_named_the_wrong_way_round_are_found_out_and_left_alone(mistaken: Site, until: Until) -> None:
    site = mistaken
    until(lambda: all(state(site, name) == "proven" for name in list(site.fleet())[2:]))
    until(lambda: max(site.tended()[2:]) < TOP)
    until(lambda: [state(site, name) for name in ("short-0", "short-1")] == ["wrong", "wrong"])
    assert site.ceilings()[:2] == [TOP, TOP]
    said = str(site.fleet()["short-0"]["clocks_left_alone"])
    assert "GPU-e2e-0 rose when it worked, not GPU-e2e-1" in said


def test_an_instance_that_was_down_is_proven_anew(own_site: Site, until: Until) -> None:
    site = own_site
    until(lambda: state(site, "long-1") == "proven")
    site.side.processes["emulate"].kill()
    until(lambda: state(site, "long-1") == "unproven")
    until(lambda: min(site.ceilings()) == TOP)
