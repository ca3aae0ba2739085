"""Power caps fail closed: they stay until a newer budget lifts them."""

from pathlib import Path

import pytest

from gpu_agent.caps import Cap, CapRefused
from gpu_agent.managed import Cause
from gpu_agent.node import Node
from gpu_agent.plant_layout import Call, NvmlReturn
from joulegate.units import Watts
from joulegate.wire import CapsRequest
from tests.gpu_agent.conftest import Bench

DEFAULT = 700.0


def cap(node: Node, caps: dict[str, float | None], epoch: int = 1) -> dict[str, Cap]:
    return node.cap(CapsRequest(holder="budget", epoch=epoch, caps=caps), "test")


def caps(bench: Bench) -> list[float]:
    return [gpu.cap for gpu in bench.plant.gpus]


def test_a_cap_is_set_clamped_and_read_back(bench: Bench) -> None:
    answer = cap(bench.node(), {"GPU-0": 450.0, "GPU-1": 50.0})
    assert caps(bench) == [450.0, 200.0, DEFAULT, DEFAULT]
    assert answer["GPU-0"] == Cap(Watts(450.0), Watts(450.0))
    assert answer["GPU-1"] == Cap(Watts(200.0), Watts(200.0))


def test_it_outlives_lease_agent_and_restart(bench: Bench) -> None:
    node = bench.node()
    cap(node, {"GPU-0": 450.0})
    bench.clock.advance(60.0)
    node.expire()
    node.shut("stop")
    again = bench.node()
    again.recover()
    again.tidy()
    assert caps(bench)[0] == 450.0


def test_what_another_tool_or_a_driver_reload_changed_is_set_again(bench: Bench) -> None:
    node = bench.node()
    cap(node, {"GPU-0": 450.0})
    bench.gpu(0).cap = Watts(DEFAULT)
    node.tidy()
    assert caps(bench)[0] == 450.0


def test_an_older_budget_is_refused_and_a_newer_one_lifts_to_what_was_before(bench: Bench) -> None:
    bench.gpu(0).cap = Watts(600.0)  # the site's own
    node = bench.node()
    cap(node, {"GPU-0": 450.0}, epoch=5)
    with pytest.raises(CapRefused, match="older"):
        cap(node, {"GPU-0": None}, epoch=4)
    assert caps(bench)[0] == 450.0
    cap(node, {"GPU-0": 500.0}, epoch=6)
    again = bench.node()
    assert cap(again, {"GPU-0": None}, epoch=7)["GPU-0"] == Cap(Watts(600.0), None)
    assert caps(bench)[0] == 600.0


def test_a_cap_that_cannot_be_noted_is_not_set(bench: Bench, tmp_path: Path) -> None:
    node = bench.node()
    (tmp_path / "agent.new").mkdir()
    with pytest.raises(CapRefused, match="state file"):
        cap(node, {"GPU-0": 450.0})
    assert caps(bench) == [DEFAULT] * 4


def test_a_cap_that_cannot_be_set_is_said_and_tried_again(bench: Bench) -> None:
    node = bench.node()
    bench.gpu(0).fail(Call.CAP, NvmlReturn.TIMEOUT)
    answer = cap(node, {"GPU-0": 450.0, "GPU-1": 450.0})
    assert answer["GPU-0"].fault is not None
    assert caps(bench)[:2] == [DEFAULT, 450.0]
    bench.gpu(0).heal()
    node.tidy()
    assert caps(bench)[0] == 450.0


def test_an_agent_that_only_watches_sets_none(bench: Bench) -> None:
    with pytest.raises(CapRefused, match="only watches"):
        cap(bench.node(allow_writes=False), {"GPU-0": 450.0})
    assert caps(bench) == [DEFAULT] * 4


def test_nothing_is_set_while_the_driver_is_handed_over(bench: Bench) -> None:
    node = bench.node()
    cap(node, {"GPU-0": 450.0})
    node.release(False, Cause("test", "upgrade"))
    with pytest.raises(CapRefused, match="handed over"):
        cap(node, {"GPU-0": 400.0})
    bench.plant.reload_driver(bench.clock())
    bench.gpu(0).cap = Watts(DEFAULT)
    node.release(True, Cause("test", "done"))
    node.tidy()
    assert caps(bench)[0] == 450.0
