from pathlib import Path
from typing import Any

import orjson
import pytest

from joulegate.settings.fleet import Fleet
from joulegate.settings.load import SettingsError, load

ROOT = Path(__file__).parents[2]
PROFILE = str(ROOT / "configs/profiles/h100_llama-3.1-8b_tp1.json")


def document(**first: Any) -> dict[str, Any]:
    engine = {"model": "m", "profile": PROFILE}
    return {
        "version": 1,
        "nodes": [{"name": "node-1", "plant": "plant", "gpus": 2, "profile": PROFILE}],
        "instances": [
            {"name": "a", "port": 9001, "gpus": ["node-1/0"], **engine, **first},
            {"name": "b", "port": 9002, "gpus": ["node-1/1"], **engine},
        ],
    }


def read(folder: Path, content: dict[str, Any]) -> Fleet:
    path = folder / "fleet.yaml"
    path.write_bytes(orjson.dumps(content))
    return load(path, Fleet)


def test_the_example_is_valid_and_has_three_pools_of_two() -> None:
    fleet = load(ROOT / "configs/fleet.yaml", Fleet)
    assert [i.name for i in fleet.instances] == [
        f"{pool}-{index}" for pool in ("short", "medium", "long") for index in (0, 1)
    ]
    assert fleet.nodes[0].uuid(5) == "GPU-node-1-5"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, document()).nodes[0].plant == tmp_path / "plant"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"gpus": ["node-1/1"]}, "GPU node-1/1 is taken by a", id="a GPU twice"),
        pytest.param({"gpus": ["node-1/7"]}, "there is no GPU node-1/7", id="no such GPU"),
        pytest.param({"name": "b"}, "b is there twice", id="a name twice"),
        pytest.param({"port": 9002}, "9002 is there twice", id="a port twice"),
        pytest.param({"engine": "llama"}, "did you mean 'vllm'?", id="an engine nobody knows"),
        pytest.param({"model": 'a"b'}, "model", id="a name that breaks JSON"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, document(**change))
    assert message in caught.value.message
