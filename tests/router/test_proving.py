"""What the prover says of an instance that it cannot try."""

import logging

import pytest

from joulegate.settings.gateway import Gateway
from joulegate.shipped import shipped
from joulegate.units import Seconds
from joulegate.wire import GpuList
from router.agents import Agent
from router.build_fleet import build_fleet
from router.engine_metrics import Gauges
from router.fleet import Health
from router.http_client import Reply
from router.pools import Member
from router.proof_file import ProofFile
from router.proving import Prover

PROFILE = shipped("profiles/h100_llama-3.1-8b_tp1.json")


class Node:
    """An agent with no GPUs to show."""

    async def get(self, path: str, timeout: float) -> Reply:  # noqa: ASYNC109
        return Reply(200, GpuList(node="n", gpus=()).model_dump_json().encode())

    async def post(self, path: str, body: bytes, timeout: float) -> Reply:  # noqa: ASYNC109
        raise AssertionError("an instance at work is not asked for tokens")

    async def close(self) -> None: ...


def busy() -> Member:
    instance = {"name": "a", "url": "http://127.0.0.1:1", "profile": str(PROFILE)}
    models = [{"name": "m", "pools": [{"name": "all", "mode": "enforce", "instances": [instance]}]}]
    [(_, _, member)] = build_fleet(Gateway.model_validate({"version": 1, "models": models})).members()
    member.status.health, member.status.gauges = Health.UP, Gauges(running=3)
    return member


class Enough(Exception):
    """It was looked at for as long as the test wants."""


async def test_an_instance_that_is_never_idle_is_said_to_wait_once(caplog: pytest.LogCaptureFixture) -> None:
    agent, times = Agent("n", Node(), "gateway"), iter(range(0, 240, 10))
    await agent.discover(Seconds(0.0))

    def clock() -> float:
        for now in times:
            return float(now)
        raise Enough

    caplog.set_level(logging.INFO)
    with pytest.raises(Enough):
        await Prover(agent, [busy()], {}, lambda _: True, ProofFile(None), clock).run()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert vars(record)["state"] == "unproven"
    assert "never idle" in vars(record)["why"]
