"""gateway.yaml: what it takes, what it refuses, and the examples that ship."""

from pathlib import Path

import pytest

from joulegate.domain import RequestType, Size
from joulegate.settings.gateway import Gateway, Pool
from joulegate.settings.load import SettingsError, load
from joulegate.units import Seconds

CONFIGS = Path(__file__).parents[2] / "configs"
HEAD = "version: 1\nagents: [{name: node-1, url: 'unix:/run/a.sock'}]\nmodels:\n- name: m\n  pools:\n"


def read(tmp_path: Path, text: str) -> Gateway:
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    return load(file, Gateway)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, text)
    return caught.value.message.replace(f"{tmp_path}/", "")


def pool(lines: str = "", instance: str = "", name: str = "a") -> str:
    head = f"  - name: {name}\n"
    body = "".join(f"    {line}\n" for line in lines.splitlines())
    return f"{head}{body}    instances:\n    - {{name: {name}-0, url: 'http://h:1'{instance}}}\n"


@pytest.mark.parametrize("name", sorted(p.name for p in CONFIGS.glob("gateway*.yaml")))
def test_the_examples_load(name: str) -> None:
    assert load(CONFIGS / name, Gateway).models


def test_one_instance_is_enough(tmp_path: Path) -> None:
    settings = read(tmp_path, HEAD + pool())
    only = settings.models[0].pools[0]
    assert only.mode == "advise"
    assert len(only.request_types) == 9
    assert settings.listen.host == "127.0.0.1"


def test_a_pool_changes_only_the_objectives_it_names(tmp_path: Path) -> None:
    text = HEAD + pool("objectives: {ttft_ms: {long: 3000}, max_slowdown: null}")
    settings = read(tmp_path, "objectives: {tpot_ms: 50, ttft_ms: {short: 100}}\n" + text)
    objectives = settings.objectives_of(settings.models[0].pools[0])
    assert objectives.ttft == (Seconds(0.1), Seconds(0.4), Seconds(3.0))
    assert objectives.tpot == Seconds(0.05)
    assert objectives.max_slowdown is None


def test_types_are_input_then_output(tmp_path: Path) -> None:
    text = HEAD + pool("types: [SL]", name="a") + pool("types: [SS, SM, MS, MM, ML, LS, LM, LL]", name="b")
    pools: tuple[Pool, ...] = read(tmp_path, text).models[0].pools
    assert pools[0].request_types == (RequestType(Size.S, Size.L),)


AGENT = ", agent: node-1, gpus: [GPU-1]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            pool("types: [SS]"), "models.0.pools: no pool takes SM, SL, MS", id="types nobody takes"
        ),
        pytest.param(pool("types: [SS, XX]"), "models.0.pools.0.types.1: expected one of", id="unknown type"),
        pytest.param(
            pool() + pool("types: [SL]", name="b"),
            "gateway.yaml:10:12: models.0.pools.1.types: SL is in pool a already",
            id="type in two pools",
        ),
        pytest.param(pool("types: [SS, SS]"), "models.0.pools: no pool takes SM", id="type twice in a pool"),
        pytest.param(
            pool() + pool(name="b"),
            "models.0.pools.1.types: SS, SM, SL, MS, MM, ML, LS, LM, LL is",
            id="both all",
        ),
        pytest.param(pool("mode: static"), "models.0.pools.0.mode: static_clock_mhz is missing", id="static"),
        pytest.param(pool("static_clock_mhz: 900"), "has no effect in mode: advise", id="clock, not static"),
        pytest.param(pool("mode: enforce"), "instances.0.agent: mode: enforce needs the agent", id="enforce"),
        pytest.param(
            pool("", ", agent: node-2, gpus: [g]"), "did you mean 'node-1'?", id="agent that is not there"
        ),
        pytest.param(
            pool("", ", agent: node-1, tensor_parallel: 2, gpus: [GPU-1]"),
            "tensor_parallel is 2, but 1 GPUs are listed",
            id="too few GPUs",
        ),
        pytest.param(pool("", ", gpus: [GPU-1]"), "GPUs are listed, but no agent", id="GPU without agent"),
        pytest.param(
            pool("types: [SS, SM, SL]", AGENT, "a") + pool("types: [MS, MM, ML, LS, LM, LL]", AGENT, "b"),
            "pools.1.instances.0.gpus.0: GPU 'GPU-1' is there twice",
            id="GPU of two instances",
        ),
        pytest.param(
            pool("types: [SS, SM, SL]") + pool("types: [MS, MM, ML, LS, LM, LL]"),
            "models.0.pools.1.name: pool 'a' is there twice",
            id="pool twice",
        ),
        pytest.param(
            pool("", ", api_key: x, api_key_file: gateway.yaml"), "'api_key' is given too", id="both"
        ),
        pytest.param(pool().replace("http://h:1", "h:1"), "expected http://host:port", id="no scheme"),
        pytest.param(pool().replace("http://h:1", "http://h:1/v1"), "without a path: http://h:1", id="path"),
        pytest.param(
            pool().replace("http://h:1", "http://h:99999"), "not a URL: Port out of range", id="port"
        ),
        pytest.param(pool("objectives: {tpot_ms: 0}"), "tpot_ms: expected more than 0, found 0", id="zero"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refused(tmp_path, HEAD + text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "control: {tick_ms: 900}", "control.lease_ttl_s: must be at least three ticks", id="lease"
        ),
        pytest.param("auth: {keys: [{name: a}]}", "auth.keys.0: a key needs one of", id="no key"),
        pytest.param("auth: {keys: [{name: a, key: b, sha256: 0}]}", "auth.keys.0.sha256: ", id="digest"),
        pytest.param("types: {input_cuts: [9, 3]}", "types.input_cuts: expected two rising", id="cuts"),
        pytest.param("types: {output_cuts: [9]}", "types.output_cuts.1: ", id="one cut"),
        pytest.param("predictor: {prior: nowhere.json}", "no such file: nowhere.json", id="prior"),
        pytest.param("listen: {port: 80800}", "listen.port: expected at most 65535, found 80800", id="port"),
        pytest.param("log: {level: trace}", "log.level: expected one of", id="level"),
        pytest.param("store: {redis_url: 'h:6379'}", "expected redis://host:port/0", id="redis"),
    ],
)
def test_each_section_is_checked(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refused(tmp_path, HEAD + pool() + text + "\n")


@pytest.mark.parametrize(
    ("url", "good"), [("unix:/a.sock", True), ("unix:a.sock", False), ("ftp://h", False)]
)
def test_an_agent_is_a_socket_or_an_address(tmp_path: Path, url: str, good: bool) -> None:
    text = HEAD.replace("unix:/run/a.sock", url) + pool()
    if good:
        assert read(tmp_path, text).agents[0].url == url
    else:
        assert "agents.0.url: expected" in refused(tmp_path, text)


def test_names_of_models_and_aliases_do_not_clash(tmp_path: Path) -> None:
    text = HEAD.replace("- name: m", "- name: m\n  aliases: [m]") + pool()
    assert "models.0.aliases.0: model 'm' is there twice" in refused(tmp_path, text)
