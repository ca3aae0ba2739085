"""What a plan, and a way to stop and start an instance, cannot be."""

from pathlib import Path

import pytest

from joulegate.errors import UserError
from joulegate.settings.gateway import Gateway
from joulegate.settings.load import load


def read(folder: Path, instance: str = "", pool: str = "", mode: str = "off") -> Gateway:
    path = folder / "gateway.yaml"
    listed = f"instances: [{{name: i, url: 'http://i:1'{instance}}}]"
    path.write_text(
        f"version: 1\nmodels: [{{name: m, pools: [{{name: p, {listed}{pool}}}]}}]\nplan: {{mode: {mode}}}\n"
    )
    return load(path, Gateway)


@pytest.mark.parametrize(
    "way",
    [
        "vllm_sleep: {level: 2}",
        "command: {start: [systemctl, start, vllm], stop: [systemctl, stop, vllm]}",
        "kubernetes: {workload: statefulset/vllm, replica: 3}",
    ],
)
def test_one_way_is_enough(tmp_path: Path, way: str) -> None:
    assert read(tmp_path, f", scale: {{{way}}}", mode="enforce").plan.mode == "enforce"


def test_nothing_is_planned_by_default(tmp_path: Path) -> None:
    plan = read(tmp_path).plan
    assert (plan.mode, plan.pools, plan.at_once) == ("off", "fixed", 1)


@pytest.mark.parametrize(
    ("instance", "says"),
    [
        (", scale: {}", "none is given"),
        (", scale: {vllm_sleep: {}, command: {start: [a], stop: [b]}}", "vllm_sleep and command are given"),
        (", engine: tgi, scale: {vllm_sleep: {}}", "engine: tgi does not sleep"),
        (", scale: {vllm_sleep: {level: 3}}", "level"),
        (", scale: {command: {start: [], stop: [b]}}", "start"),
        (", scale: {command: {start: [a], stop: [b], pass_env: ['A=B']}}", "pass_env"),
        (", scale: {kubernetes: {workload: pod/vllm}}", "workload"),
        (", scale: {kubernetes: {workload: deployment/vllm, replica: 1}}", "no addresses of their own"),
        (", scale: {vllm_sleep: {}, start_s: 0}", "start_s"),
    ],
)
def test_what_cannot_be(tmp_path: Path, instance: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read(tmp_path, instance)


def test_more_cannot_stay_warm_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are 1 instances"):
        read(tmp_path, pool=", min_warm: 2")


def test_a_plan_in_force_needs_somebody_to_stop(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no instance has `scale`"):
        read(tmp_path, mode="enforce")
