import copy
from pathlib import Path
from typing import Any

import orjson
import pytest

from joulegate.engine_profile import parse_profile

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "profiles").glob("*.json"))


def changed(path: str, value: object) -> dict[str, Any]:
    """A shipped profile with one other value."""
    document: dict[str, Any] = copy.deepcopy(orjson.loads(SHIPPED[0].read_bytes()))
    *sections, key = path.split(".")
    place = document
    for section in sections:
        place = place[section]
    place[key] = value
    return document


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_shipped_can_be_read(path: Path) -> None:
    assert parse_profile(orjson.loads(path.read_bytes())).max_clock > 0


@pytest.mark.parametrize(
    "path",
    [
        *("tp", "f_max_mhz", "latency.p", "power.u_sat", "power.tdp_w"),
        *("engine.kv_capacity_tokens", "engine.max_num_seqs", "engine.max_num_batched_tokens"),
    ],
)
def test_what_formulas_divide_by_is_above_zero(path: str) -> None:
    with pytest.raises(ValueError, match=path.rpartition(".")[2] + ": 0.*more than 0"):
        parse_profile(changed(path, 0))


@pytest.mark.parametrize("value", [None, [1], "abc", -1, {}])
def test_what_is_no_number_is_named(value: object) -> None:
    with pytest.raises(ValueError, match=r"m0_s: .*expected a number of 0 or more"):
        parse_profile(changed("latency.m0_s", value))


@pytest.mark.parametrize(
    "key", ["tp", "f_max_mhz", "clocks_mhz", "validated_clock_range_mhz", "cuda_graph_batches"]
)
@pytest.mark.parametrize("value", [None, "abc", ["abc"], [None]])
def test_what_are_no_whole_numbers_is_named(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{key}: .*expected whole numbers"):
        parse_profile(changed(key, value))


@pytest.mark.parametrize("value", [[], [210], [210, 900, 1410]])
def test_a_range_of_clocks_has_two_ends(value: list[int]) -> None:
    with pytest.raises(ValueError, match=r"validated_clock_range_mhz: .*expected the lowest and the highest"):
        parse_profile(changed("validated_clock_range_mhz", value))


def test_a_voltage_that_never_rises_is_none() -> None:
    with pytest.raises(ValueError, match=r"knee: 1\.0, expected less than 1"):
        parse_profile(changed("power.knee", 1))


def test_work_draws_power() -> None:
    document = changed("power.p_static_w", 0)
    document["power"].update(d0_w=0, dm_w=0, dc_w=0, hm_w=0)
    with pytest.raises(ValueError, match=r"p_static_w \+ .*: 0"):
        parse_profile(document)


def test_an_iteration_takes_time() -> None:
    document = changed("latency.p", 3)
    document["latency"].update(m0_s=0, c0_s=0, h0_s=0)
    with pytest.raises(ValueError, match=r"m0_s \+ c0_s \+ h0_s: 0"):
        parse_profile(document)
