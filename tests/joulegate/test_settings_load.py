"""Settings files: every error at once, each with its place and what to write instead."""

import logging
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, SecretStr

from joulegate.errors import UserError
from joulegate.settings import locate
from joulegate.settings.base import Fault, File, InputFile, LocalPath, Section
from joulegate.settings.load import SettingsError, load, load_with_places, read_secret


class Objectives(Section):
    ttft_ms: float = Field(400.0, gt=0)
    tpot_ms: float = Field(gt=0)


class Pool(Section):
    name: str
    mode: Literal["observe", "advise", "enforce"] = "advise"
    slots: int | Literal["auto"] = "auto"
    objectives: Objectives
    api_key: SecretStr | None = None
    limits: dict[str, Objectives] = Field(default_factory=dict)

    def faults(self) -> Iterator[Fault]:
        if self.name == "bad":
            yield Fault(("name",), "nobody may be called that", "call it good")


class Red(Section):
    kind: Literal["red"]


class Blue(Section):
    kind: Literal["blue"]
    depth: int


class Sample(File):
    pools: list[Pool] = Field(min_length=1)
    colour: Annotated[Red | Blue, Field(discriminator="kind")] = Red(kind="red")
    state_file: LocalPath | None = None
    profile: InputFile | None = None


def refused(tmp_path: Path, text: str) -> str:
    file = tmp_path / "sample.yaml"
    file.write_text(dedent(text).lstrip())
    with pytest.raises(SettingsError) as caught:
        load(file, Sample)
    return caught.value.message.replace(f"{tmp_path}/", "")


def accepted(tmp_path: Path, text: str) -> Sample:
    file = tmp_path / "sample.yaml"
    file.write_text(dedent(text).lstrip())
    return load(file, Sample)


def test_every_problem_is_reported_at_once_with_its_place(tmp_path: Path) -> None:
    message = refused(
        tmp_path,
        """
        version: 1
        pools:
          - name: short
            mode: enforced
            objectives:
              tpot_mss: 40
          - name: long
            objectives: {tpot_ms: 0}
        """,
    )
    assert message == dedent(
        """\
        sample.yaml has 3 problems
        sample.yaml:4:11: pools.0.mode: expected one of 'observe', 'advise' or 'enforce', found 'enforced'
           4 |     mode: enforced
             |           ^^^^^^^^
          help: did you mean 'enforce'?
        sample.yaml:6:7: pools.0.objectives.tpot_mss: unknown key
           6 |       tpot_mss: 40
             |       ^^^^^^^^
          help: did you mean 'tpot_ms'? It is in milliseconds.
        sample.yaml:8:27: pools.1.objectives.tpot_ms: expected more than 0, found 0
           8 |     objectives: {tpot_ms: 0}
             |                           ^"""
    )


def test_a_missing_key_points_at_the_key_it_belongs_under(tmp_path: Path) -> None:
    message = refused(tmp_path, "version: 1\npools:\n  - name: x\n    objectives:\n      ttft_ms: 3\n")
    assert "sample.yaml:4:5: pools.0.objectives.tpot_ms: is missing" in message
    assert "help: add 'tpot_ms:', in milliseconds" in message


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param("tpot_s: 0.1", "did you mean 'tpot_ms'? It is in milliseconds.", id="other unit"),
        pytest.param("tpot: 100", "did you mean 'tpot_ms'? It is in milliseconds.", id="no unit"),
        pytest.param("quux: 1", "accepted here: ttft_ms, tpot_ms", id="nothing near"),
        pytest.param(
            "tpot_ms: 40ms", "write the number alone: the key is in milliseconds", id="unit in value"
        ),
    ],
)
def test_help_names_what_to_write(tmp_path: Path, line: str, expected: str) -> None:
    message = refused(tmp_path, f"version: 1\npools:\n  - name: x\n    objectives:\n      {line}\n")
    assert f"help: {expected}" in message


def test_an_unknown_key_inside_a_mapping_of_sections_is_explained(tmp_path: Path) -> None:
    text = (
        "version: 1\npools:\n- name: x\n  objectives: {tpot_ms: 1}\n  limits: {a: {tpot_ms: 1, ttftms: 2}}\n"
    )
    message = refused(tmp_path, text)
    assert "pools.0.limits.a.ttftms: unknown key" in message
    assert "did you mean 'ttft_ms'" in message


def test_a_union_says_all_it_would_take(tmp_path: Path) -> None:
    text = "version: 1\npools: [{name: x, slots: many, objectives: {tpot_ms: 1}}]\n"
    assert "expected a whole number or one of 'auto', found 'many'" in refused(tmp_path, text)


POOLS = "version: 1\npools: [{name: x, objectives: {tpot_ms: 1}}]\n"


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        pytest.param(
            "{kind: bleu}", "colour.kind: expected one of 'red', 'blue', found 'bleu'", id="no such"
        ),
        pytest.param("{kind: bleu}", "help: did you mean 'blue'?", id="near"),
        pytest.param("{depth: 3}", "sample.yaml:3:9: colour.kind: is missing", id="not said"),
        pytest.param("{kind: blue, deep: 3}", "sample.yaml:3:22: colour.deep: unknown key", id="its keys"),
        pytest.param("", "help: write its value, or remove the line", id="nothing"),
    ],
)
def test_a_choice_of_sections_is_explained(tmp_path: Path, colour: str, expected: str) -> None:
    message = refused(tmp_path, f"{POOLS}colour: {colour}\n")
    assert expected in message
    assert "1 problem\n" in message


def test_a_list_of_wrong_items_is_not_called_short(tmp_path: Path) -> None:
    assert "at least" not in refused(tmp_path, "version: 1\npools: [3]\n")
    assert "expected at least 1 of them, found a list of 0" in refused(tmp_path, "version: 1\npools: []\n")


def test_repeated_keys_are_refused_at_the_second(tmp_path: Path) -> None:
    message = refused(tmp_path, "version: 1\npools: [{name: x, objectives: {tpot_ms: 1}}]\nversion: 1\n")
    assert "sample.yaml:3:1: version: the key is repeated; first on line 1" in message


def test_the_version_is_asked_for(tmp_path: Path) -> None:
    message = refused(tmp_path, "pools: [{name: x, objectives: {tpot_ms: 1}}]\n")
    assert "sample.yaml:1:1: version: is missing" in message
    assert "begin the file with 'version: 1'" in message
    assert "expected one of 1, found 2" in refused(tmp_path, "version: 2\npools: []\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "version: 1\n\tpools: 1\n", "sample.yaml:2:1: not YAML: a tab cannot indent YAML", id="tab"
        ),
        pytest.param("a: [1,\nb: 2\n", "sample.yaml:", id="open list"),
        pytest.param("a: b: c\n", "sample.yaml:1:5: not YAML: mapping values are not allowed", id="colon"),
        pytest.param("", "sample.yaml:1:1: the file is empty", id="empty"),
        pytest.param("- 1\n", "sample.yaml:1:1: expected a mapping of keys to values", id="list"),
        pytest.param("a: 1\n---\nb: 2\n", "sample.yaml:2:1: not YAML", id="two documents"),
        pytest.param("a: \x01\n", "sample.yaml:1:1: ", id="control character"),
        pytest.param("a: !!python/name:os.system x\n", "is not accepted here", id="tag"),
        pytest.param("a: &x [*x]\n", "endless", id="alias to itself"),
        pytest.param("a: &x {<<: *x}\n", "endless", id="merge of itself"),
        pytest.param("<<: 3\n", "'<<' merges a mapping", id="merge of a number"),
        pytest.param("? [a]\n: 1\n", "a key must be plain text", id="list as key"),
        pytest.param("a: " + "[" * 2000 + "]" * 2000, "sample.yaml:1:1: nested too deeply", id="deep"),
        pytest.param(f"a: 1{'0' * 5000}\n", "a: a number of more than", id="5001 digits"),
        pytest.param(f"version: 0x1{'0' * 5000}\n", "a number of more than", id="5001 hexadecimal digits"),
    ],
)
def test_broken_yaml_is_reported_in_the_same_shape(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refused(tmp_path, text)


@pytest.mark.parametrize("level", ["[{}]", "{{<<: [{}]}}"])
def test_an_alias_bomb_is_cut_short(tmp_path: Path, level: str) -> None:
    lines = ["version: 1", "a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {level.format(', '.join([f'*a{i - 1}'] * 10))}" for i in range(1, 20)]
    assert refused(tmp_path, "\n".join(lines)).count("too large") == 1


def test_a_folder_that_cannot_be_looked_into_says_why(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="cannot read") as caught:
        load(tmp_path / "loop" / "gateway.yaml", Sample)
    assert caught.value.help == f"{tmp_path / 'loop'}: Too many levels of symbolic links"


def test_a_file_that_does_not_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="larger than 1 MiB"):
        load(tmp_path / "endless.yaml", Sample)


def test_merge_keys_and_aliases_read_as_yaml_users_expect(tmp_path: Path) -> None:
    settings = accepted(
        tmp_path,
        """
        version: 1
        pools:
          - &base {name: a, mode: observe, objectives: {tpot_ms: 1}}
          - &more {<<: *base, name: b}
          - {<<: *more, mode: enforce}
          - {<<: [{mode: advise}, *more], name: c}
        """,
    )
    assert [(pool.name, pool.mode) for pool in settings.pools] == [
        ("a", "observe"),
        ("b", "observe"),
        ("b", "enforce"),
        ("c", "advise"),
    ]


def test_environment_variables_are_expanded_in_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TPOT", "12.5")
    monkeypatch.setenv("KEY", "0123")
    monkeypatch.delenv("NOT_SET", raising=False)
    settings = accepted(
        tmp_path,
        """
        version: 1
        pools:
          - name: ${NOT_SET:-fallback}-$${KEY}
            api_key: ${KEY}
            objectives: {tpot_ms: "${TPOT}"}
        """,
    )
    pool = settings.pools[0]
    assert pool.name == "fallback-${KEY}"
    assert pool.objectives.tpot_ms == 12.5
    assert pool.api_key is not None
    assert pool.api_key.get_secret_value() == "0123"


def test_an_unset_variable_is_an_error_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    message = refused(tmp_path, "version: 1\npools: [{name: '${NOT_SET}', objectives: {tpot_ms: 1}}]\n")
    assert "sample.yaml:2:16: pools.0.name: the environment variable NOT_SET is not set" in message
    assert "1 problem\n" in message


def test_an_empty_default_leaves_the_setting_unset(tmp_path: Path) -> None:
    text = "version: 1\nstate_file: ${NOT_SET:-}\npools: [{name: x, objectives: {tpot_ms: 1}}]\n"
    assert accepted(tmp_path, text).state_file is None


def test_what_a_section_finds_wrong_with_itself_has_a_place(tmp_path: Path) -> None:
    text = "version: 1\npools:\n  - objectives: {tpot_ms: 1}\n    name: bad\n"
    message = refused(tmp_path, text)
    assert "sample.yaml:4:11: pools.0.name: nobody may be called that" in message
    assert "help: call it good" in message


def test_relative_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "p.json").write_text("{}")
    text = "version: 1\nstate_file: s/x\nprofile: p.json\npools: [{name: x, objectives: {tpot_ms: 1}}]\n"
    settings = accepted(tmp_path, text)
    assert settings.state_file == tmp_path / "s/x"
    assert settings.profile == tmp_path / "p.json"


def test_an_input_file_must_exist(tmp_path: Path) -> None:
    text = "version: 1\nprofile: q.json\npools: [{name: x, objectives: {tpot_ms: 1}}]\n"
    assert "sample.yaml:2:10: profile: no such file: q.json" in refused(tmp_path, text)


@pytest.mark.parametrize("name", ["x" * 300, '"a\\0b"', "sample.yaml/q.json"])
def test_a_file_that_cannot_be_is_not_there(tmp_path: Path, name: str) -> None:
    text = f"version: 1\nprofile: {name}\npools: [{{name: a, objectives: {{tpot_ms: 1}}}}]\n"
    assert "sample.yaml:2:10: profile: no such file: " in refused(tmp_path, text)


def test_a_file_that_is_not_there_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text("version: 1\n")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "gatewy.yaml", Sample)
    assert "No such file" in caught.value.message
    assert "gateway.yaml" in caught.value.help


@pytest.mark.parametrize(
    "text",
    [
        "version: 1\npools: [{name: x, api_key: sk-very-secret, objectivs: {tpot_ms: 1}}]\n",
        "version: 1\npools:\n  - name: x\n    objectives: {tpot_ms: 1}\n    api_key: [sk-very-secret]\n",
        "version: 1\napi_key: 'sk-very-secret\n",
        "version: 1\nredis_url: redis://:sk-very-secret@host/0\n",
    ],
)
def test_no_message_shows_a_secret(tmp_path: Path, text: str) -> None:
    assert "sk-very" not in refused(tmp_path, text)


def test_every_value_remembers_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("version: 1\npools:\n  - {name: '${WHO}', objectives: {tpot_ms: 1}}\n")
    document = load_with_places(file, Sample, {"WHO": "me"}).document
    assert document.variables == {("pools", 0, "name"): "WHO"}
    assert document.values[("pools", 0, "objectives", "tpot_ms")] == locate.Place(3, 44, 1)


def test_a_secret_file_loses_one_newline(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "token"
    file.write_text("abc\n\n")
    file.chmod(0o600)
    assert read_secret(None, file) == "abc\n"
    assert not caplog.records
    assert read_secret(SecretStr("x"), None) == "x"
    assert read_secret(None, None) is None


def test_an_open_secret_file_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "token"
    file.write_text("abc")
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        assert read_secret(None, file) == "abc"
    assert [record.message for record in caplog.records] == ["secret file is open to every user"]
    assert "abc" not in caplog.text


def test_an_empty_secret_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_secret(None, tmp_path / "token")


YAML_LIKE = st.text(alphabet="ab:-[]{},&*!|>'\"#%@`$ \n\t?<0", max_size=60)


@settings(deadline=None)  # a loaded machine is no failure
@given(YAML_LIKE)
def test_no_text_makes_the_reader_throw(text: str) -> None:
    document = locate.read("x.yaml", text, {})
    assert document.problems or isinstance(document.value, dict)


@settings(deadline=None)  # a loaded machine is no failure
@given(YAML_LIKE)
def test_masking_keeps_every_width(line: str) -> None:
    assert len(locate.masked(line)) == len(line)
