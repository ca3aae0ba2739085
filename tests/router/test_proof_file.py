"""Which instance runs on which GPUs, over a restart of the gateway: what holds, and what no longer does."""

from dataclasses import replace
from pathlib import Path

import pytest

from joulegate.settings.gateway import Gateway
from joulegate.wire import GpuState
from router.build_fleet import build_fleet
from router.pools import Member
from router.proof_file import ProofFile


def instance(url: str = "http://h:1", gpus: tuple[str, ...] = ("g0", "g1")) -> Member:
    served = {"name": "i", "url": url, "agent": "n", "gpus": gpus, "tensor_parallel": len(gpus)}
    models = [{"name": "m", "pools": [{"name": "p", "instances": [served]}]}]
    agents = [{"name": "n", "url": "http://n:1"}]
    fleet = build_fleet(Gateway.model_validate({"version": 1, "models": models, "agents": agents}))
    [(_, _, member)] = fleet.members()
    return member


def seen(pids: tuple[int, ...] = (7, 8), joules: float = 100.0) -> dict[str, GpuState]:
    return {
        f"g{i}": GpuState(
            uuid=f"g{i}",
            index=i,
            name="gpu",
            clock_mhz=1980,
            ceiling_mhz=None,
            power_w=300.0,
            energy_j=joules,
            temperature_c=50.0,
            processes=pids[i : i + 1],
            observed_at_s=0.0,
        )
        for i in range(3)
    }


def test_a_proof_holds_for_the_next_gateway_while_all_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state" / "proofs.json"
    ProofFile(path).keep(instance(), seen())
    assert ProofFile(path).holds(instance(), seen(joules=250.0))


@pytest.mark.parametrize(
    ("member", "gpus"),
    [
        pytest.param(instance(url="http://h:2"), seen(), id="another address"),
        pytest.param(instance(gpus=("g0", "g2")), seen(pids=(7, 8, 8)), id="another GPU"),
        pytest.param(instance(), seen(pids=(7, 9)), id="another process: it was started again"),
        pytest.param(instance(), seen(pids=()), id="processes that nobody sees"),
        pytest.param(instance(), {}, id="an agent that has not answered"),
        pytest.param(instance(), seen(joules=99.0), id="a counter that began anew"),
    ],
)
def test_a_proof_is_nothing_once_something_has_changed(
    tmp_path: Path, member: Member, gpus: dict[str, GpuState]
) -> None:
    path = tmp_path / "proofs.json"
    ProofFile(path).keep(instance(), seen())
    assert not ProofFile(path).holds(member, gpus)


def test_what_was_down_is_forgotten_on_disk_too(tmp_path: Path) -> None:
    path = tmp_path / "proofs.json"
    kept = ProofFile(path)
    kept.keep(instance(), seen())
    kept.forget(instance())
    assert not ProofFile(path).holds(instance(), seen())


def test_an_instance_of_another_model_is_another(tmp_path: Path) -> None:
    path = tmp_path / "proofs.json"
    ProofFile(path).keep(instance(), seen())
    member = instance()
    member.status.endpoint = replace(member.endpoint, model="other")
    assert not ProofFile(path).holds(member, seen())


@pytest.mark.parametrize("content", [b"", b"[]", b'{"i": {"address": 3}}'])
def test_a_damaged_file_is_no_proof(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "proofs.json"
    path.write_bytes(content)
    kept = ProofFile(path)
    assert not kept.holds(instance(), seen())
    kept.keep(instance(), seen())
    assert ProofFile(path).holds(instance(), seen())


def test_without_a_place_nothing_is_kept_and_a_full_disk_costs_only_the_proofs(tmp_path: Path) -> None:
    kept = ProofFile(None)
    kept.keep(instance(), seen())
    assert not kept.holds(instance(), seen())
    (tmp_path / "file").write_text("")
    ProofFile(tmp_path / "file" / "proofs.json").keep(instance(), seen())
