"""The demo waits until every instance was seen on its GPU, and for nothing less."""

import pytest

from simulator.demo_site import all_proven


def picture(*states: str) -> dict[str, object]:
    instances = [{"mapping": {"state": state}} for state in states]
    return {"models": [{"pools": [{"instances": instances}, {"instances": []}]}]}


@pytest.mark.parametrize(
    ("states", "enough"),
    [
        pytest.param(("proven", "proven"), True, id="all of them"),
        pytest.param(("proven", "unproven"), False, id="one is missing"),
        pytest.param(("proven", "wrong"), False, id="one is wrong"),
        pytest.param((), False, id="no instance yet"),
    ],
)
def test_all_instances_must_be_proven_and_there_must_be_some(states: tuple[str, ...], enough: bool) -> None:
    assert all_proven(picture(*states)) is enough
