"""An instance runs on the GPUs that rise when it works."""

import pytest

from control.mapping import Proof, Standing, judge
from joulegate.units import Seconds, Watts

IDLE = {gpu: Watts(70.0) for gpu in "abcd"}


@pytest.mark.parametrize(
    ("mine", "rises", "at_work", "state"),
    [
        pytest.param("a", {"a": 250}, "", Standing.PROVEN, id="its GPU and no other"),
        pytest.param("ab", {"a": 250, "b": 240}, "", Standing.PROVEN, id="all of a tensor-parallel one"),
        pytest.param("ab", {"a": 250}, "", Standing.UNPROVEN, id="only one of two"),
        pytest.param("a", {"b": 250}, "", Standing.WRONG, id="another instead"),
        pytest.param("a", {"a": 250, "b": 250}, "", Standing.UNPROVEN, id="another too"),
        pytest.param("a", {"a": 250, "b": 250}, "b", Standing.PROVEN, id="another that had work of its own"),
        pytest.param("a", {"b": 250}, "b", Standing.UNPROVEN, id="only one that had work of its own"),
        pytest.param("a", {}, "", Standing.UNPROVEN, id="nobody"),
        pytest.param("a", {"a": 80}, "", Standing.UNPROVEN, id="no more than noise"),
        pytest.param("ax", {"a": 250}, "", Standing.UNPROVEN, id="a GPU the agent does not have"),
    ],
)
def test_verdicts(mine: str, rises: dict[str, float], at_work: str, state: Standing) -> None:
    during = IDLE | {gpu: Watts(watts) for gpu, watts in rises.items()}
    found = judge(frozenset(mine), IDLE, during, frozenset(at_work), Proof(tries=2), Seconds(5.0))
    assert (found.state, found.tries, found.at) == (state, 3, 5.0)
    assert found.why


def test_a_gpu_that_falls_meanwhile_proves_nothing() -> None:
    before = IDLE | {"b": Watts(300.0)}
    during = IDLE | {"a": Watts(250.0)}
    assert judge(frozenset("a"), before, during, frozenset(), Proof(), Seconds(0.0)).state is Standing.PROVEN
