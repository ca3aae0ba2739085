import pytest

from joulegate.units import Seconds
from router.fleet import Health, InstanceStatus, Signal, step
from router.ports import Endpoint, Engine

NOW = Seconds(10.0)


def status(health: Health = Health.UP) -> InstanceStatus:
    return InstanceStatus(Endpoint("a", "short", Engine.VLLM, "127.0.0.1", 8000), health)


def run(health: Health, *signals: Signal) -> Health:
    for signal in signals:
        health = step(health, signal)
    return health


@pytest.mark.parametrize(
    ("start", "signals", "end"),
    [
        pytest.param(Health.UP, [Signal.REQUEST_FAILED], Health.SUSPECT, id="one failure is suspicion"),
        pytest.param(Health.UP, [Signal.REQUEST_FAILED] * 2, Health.DOWN, id="two in a row are down"),
        pytest.param(
            Health.UP, [Signal.REQUEST_FAILED, Signal.REQUEST_SUCCEEDED], Health.UP, id="a success forgives"
        ),
        pytest.param(Health.DOWN, [Signal.REQUEST_SUCCEEDED], Health.DOWN, id="old answers do not revive"),
        pytest.param(Health.DOWN, [Signal.PROBE_PASSED], Health.PROBATION, id="half-open after a probe"),
        pytest.param(
            Health.DOWN,
            [Signal.PROBE_PASSED, Signal.PROBE_PASSED],
            Health.PROBATION,
            id="probes do not close",
        ),
        pytest.param(
            Health.DOWN, [Signal.PROBE_PASSED, Signal.REQUEST_SUCCEEDED], Health.UP, id="a request closes it"
        ),
    ],
)
def test_health_moves_by_the_table(start: Health, signals: list[Signal], end: Health) -> None:
    assert run(start, *signals) is end


def test_probation_takes_one_request_at_a_time() -> None:
    instance = status(Health.PROBATION)
    assert instance.may_take(0, NOW)
    assert not instance.may_take(1, NOW)


def test_a_busy_instance_is_passed_over_for_a_moment_and_stays_healthy() -> None:
    instance = status()
    instance.busy_until = Seconds(NOW + 0.5)
    assert not instance.may_take(0, NOW)
    assert instance.may_take(0, Seconds(NOW + 0.6))
    assert instance.health is Health.UP


@pytest.mark.parametrize("flag", ["draining", "asleep"])
def test_an_instance_taken_out_says_why(flag: str) -> None:
    instance = status()
    setattr(instance, flag, True)
    assert not instance.may_take(0, NOW)
    assert instance.why_not(NOW) == flag


def test_a_failure_is_remembered_until_it_is_up_again() -> None:
    instance = status(Health.SUSPECT)
    instance.signal(Signal.REQUEST_FAILED, NOW, "connection refused")
    assert "connection refused" in instance.why_not(NOW)
    instance.signal(Signal.PROBE_PASSED, NOW)
    instance.signal(Signal.REQUEST_SUCCEEDED, NOW)
    assert instance.why_not(NOW) == ""
