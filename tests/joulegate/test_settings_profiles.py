"""A profile that is none, or of another engine, is a problem where it is named; so is a goal out of reach."""

from pathlib import Path

import pytest

from joulegate.settings.gateway import Gateway
from joulegate.settings.load import SettingsError, load_with_places
from joulegate.shipped import shipped

SMALL = shipped("profiles/h100_llama-3.1-8b_tp1.json")
LARGE = shipped("profiles/h100_llama-3.1-70b_tp4.json")
TEXT = """version: 1
{top}
models:
  - name: m
    pools:
      - name: all
        {pool}
        instances: [{{name: one, url: "http://127.0.0.1:8000", profile: "{profile}"{more}}}]
"""


def written(folder: Path, profile: Path, *, top: str = "", pool: str = "", more: str = "") -> Path:
    file = folder / "gateway.yaml"
    file.write_text(TEXT.format(profile=profile, top=top or "#", pool=pool or "#", more=more))
    return file


def problems(file: Path) -> list[tuple[int, str, str]]:
    try:
        load_with_places(file, Gateway, {})
    except SettingsError as error:
        return [(p.place.line, ".".join(map(str, p.path)), p.message) for p in error.problems]
    return []


def test_a_file_that_is_no_profile_is_named_where_it_is_written(tmp_path: Path) -> None:
    wrong = tmp_path / "profile.json"
    wrong.write_text("{")
    [(line, path, said)] = problems(written(tmp_path, wrong))
    assert (line, path) == (8, "models.0.pools.0.instances.0.profile")
    assert said.startswith("no engine profile")


@pytest.mark.parametrize(
    ("profile", "more", "found"),
    [
        pytest.param(SMALL, "", 0, id="one GPU and a profile of one"),
        pytest.param(LARGE, ", tensor_parallel: 4", 0, id="four and four"),
        pytest.param(LARGE, "", 1, id="one and a profile of four"),
        pytest.param(SMALL, ", tensor_parallel: 2", 1, id="two and a profile of one"),
    ],
)
def test_a_profile_is_of_as_many_gpus_as_its_instance(
    tmp_path: Path, profile: Path, more: str, found: int
) -> None:
    said = problems(written(tmp_path, profile, more=more))
    assert len(said) == found
    assert all("tensor_parallel is" in message for _, _, message in said)


def test_what_train_latency_wrote_is_left_to_who_reads_it(tmp_path: Path) -> None:
    learned = tmp_path / "model.npz"
    learned.write_bytes(b"PK\x03\x04")
    loaded = load_with_places(written(tmp_path, learned), Gateway, {})
    assert loaded.doubts == ()


@pytest.mark.parametrize(
    ("top", "pool", "at"),
    [
        pytest.param("", "objectives: {tpot_ms: 5}", (7, "models.0.pools.0.objectives.tpot_ms"), id="pool"),
        pytest.param("objectives: {tpot_ms: 5}", "", (2, "objectives.tpot_ms"), id="gateway"),
        pytest.param("objectives: {tpot_ms: 5}", "objectives: {tpot_ms: 50}", None, id="the pool's own"),
        pytest.param("", "objectives: {tpot_ms: 8}", None, id="just within reach"),
    ],
)
def test_an_objective_that_no_clock_meets_is_told_where_it_is_written(
    tmp_path: Path, top: str, pool: str, at: tuple[int, str] | None
) -> None:
    loaded = load_with_places(written(tmp_path, SMALL, top=top, pool=pool), Gateway, {})
    found = loaded.doubts
    assert [(p.place.line, ".".join(map(str, p.path))) for p in found] == ([] if at is None else [at])
    assert all("no clock meets it" in problem.message for problem in found)
