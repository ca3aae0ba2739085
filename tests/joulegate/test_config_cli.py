"""`config check`, `config show`, `config schema`."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft7Validator
from ruamel.yaml import YAML

from joulegate.cli import COMMANDS, run

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
GOOD = """\
version: 1
listen: {port: "${PORT:-9000}"}
auth: {admin_key: sk-admin}
models:
  - name: m
    pools:
      - name: p
        objectives: {ttft_ms: {long: 3000}}
        instances: [{name: i, url: "http://h:1"}]
"""


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PORT", "9001")
    file = tmp_path / "gateway.yaml"
    file.write_text(GOOD)
    return file


def test_check_says_what_it_read(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "check", str(good)], COMMANDS) == 0
    assert capsys.readouterr().out == f"{good}: ok (gateway)\n"


def test_check_reports_every_file(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "other.yaml"
    bad.write_text(GOOD.replace("objectives", "objectivs"))
    absent = tmp_path / "gone.yaml"
    assert run(["config", "check", str(good), str(bad), str(absent)], COMMANDS) == 2
    out = capsys.readouterr().out
    assert f"{good}: ok (gateway)" in out
    assert f"{bad}:8:9: models.0.pools.0.objectivs: unknown key" in out
    assert f"cannot read {absent}" in out


def test_check_warns_of_an_objective_that_no_clock_meets(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = CONFIGS / "profiles" / "h100_llama-3.1-8b_tp1.json"
    text = GOOD.replace('url: "http://h:1"', f'url: "http://h:1", profile: "{profile}"')
    good.write_text(text.replace("ttft_ms: {long: 3000}", "tpot_ms: 2"))
    assert run(["config", "check", str(good)], COMMANDS) == 0
    assert f"warning: {good}:8:31: models.0.pools.0.objectives.tpot_ms: no clock" in capsys.readouterr().err


def test_variables_that_are_not_set_are_not_also_names_given_twice(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ', {name: i, url: "http://h:2"}'
    good.write_text(GOOD.replace('"http://h:1"}', '"http://h:1"}' + more).replace("name: i", 'name: "${NO}"'))
    assert run(["config", "check", str(good)], COMMANDS) == 2
    out = capsys.readouterr().out
    assert out.count("the environment variable NO is not set") == 2
    assert "twice" not in out


def test_a_file_named_for_another_kind_is_read_as_what_its_keys_say(
    good: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = good.rename(good.with_name("agent.yaml"))
    assert run(["config", "check", str(file)], COMMANDS) == 0
    assert capsys.readouterr().out == f"{file}: ok (gateway)\n"


def test_check_warns_of_a_secret_that_everybody_can_read(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "admin"
    secret.write_text("s")
    good.write_text(GOOD.replace("admin_key: sk-admin", "admin_key_file: admin"))
    for mode, warned in ((0o644, True), (0o640, False)):
        secret.chmod(mode)
        assert run(["config", "check", str(good)], COMMANDS) == 0
        warning = f"warning: {good}:3:24: auth.admin_key_file: every user can read {secret}"
        assert (warning in capsys.readouterr().err) == warned


def test_check_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "gateway.yaml"
    bad.write_text(GOOD.replace("9000", "x"))
    assert run(["config", "check", "--json", str(bad)], COMMANDS) == 2
    [result] = json.loads(capsys.readouterr().out)
    assert (result["file"], result["ok"]) == (str(bad), False)
    [problem] = result["problems"]
    assert (problem["line"], problem["column"], problem["path"]) == (2, 16, "listen.port")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        pytest.param("prod.yaml", "", "ok (gateway)", id="by its keys"),
        pytest.param("my.gateway.yaml", "", "ok (gateway)", id="by its name"),
        pytest.param("agent.yaml", "kind: gateway\n", "ok (gateway)", id="by what it says"),
        pytest.param("x.yaml", "kind: gatway\n", "help: did you mean 'gateway'?", id="kind misspelt"),
    ],
)
def test_the_kind_is_found_out(
    name: str, text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(text + GOOD)
    run(["config", "check", str(tmp_path / name)], COMMANDS)
    assert expected in capsys.readouterr().out


def test_a_file_of_no_kind_is_asked_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text("version: 1\n")
    assert run(["config", "check", str(tmp_path / "x.yaml")], COMMANDS) == 2
    assert "add a line 'kind:'" in capsys.readouterr().out


def test_show_names_every_origin_and_hides_secrets(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", str(good)], COMMANDS) == 0
    out = capsys.readouterr().out
    assert "port: 9001  # env PORT" in out
    assert f"long: 3000  # {good}:8" in out
    assert 'host: "127.0.0.1"  # default' in out
    assert f'admin_key: "********"  # {good}:3' in out
    assert "sk-admin" not in out


def test_what_show_prints_is_a_settings_file_again(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["config", "show", str(good)], COMMANDS)
    again = tmp_path / "again.gateway.yaml"
    again.write_text(capsys.readouterr().out)
    assert run(["config", "check", str(again)], COMMANDS) == 0
    capsys.readouterr()
    run(["config", "show", "--json", str(good)], COMMANDS)
    first = json.loads(capsys.readouterr().out)
    run(["config", "show", "--json", str(again)], COMMANDS)
    second = json.loads(capsys.readouterr().out)
    assert [(e["path"], e["value"]) for e in first] == [(e["path"], e["value"]) for e in second]


@pytest.mark.parametrize(
    "file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_every_example_passes_and_names_its_schema(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GPU_SHORT", "GPU_MEDIUM", "GPU_LONG"):
        monkeypatch.setenv(name, f"GPU-{name}")
    assert run(["config", "check", str(file)], COMMANDS) == 0, capsys.readouterr().out
    modeline = file.read_text().splitlines()[0]
    assert modeline.startswith("# yaml-language-server: $schema=")
    schema = json.loads((file.parent / modeline.partition("=")[2]).read_text())
    Draft7Validator.check_schema(schema)
    assert [error.message for error in Draft7Validator(schema).iter_errors(YAML(typ="safe").load(file))] == []


def test_schema_prints_what_editors_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "schema", "gateway"], COMMANDS) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((CONFIGS / "schema/gateway.json").read_text())


def test_the_schema_refuses_what_the_loader_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    run(["config", "schema", "gateway"], COMMANDS)
    validator = Draft7Validator(json.loads(capsys.readouterr().out))
    good = YAML(typ="safe").load(GOOD)
    assert validator.is_valid(good)
    assert not validator.is_valid({**good, "listen": {"port": "many"}})
    assert not validator.is_valid({**good, "listne": {}})
    assert not validator.is_valid({key: value for key, value in good.items() if key != "version"})
