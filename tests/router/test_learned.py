from pathlib import Path

import pytest

from joulegate.domain import LengthQuery
from joulegate.errors import UserError
from joulegate.settings.gateway import Gateway
from router.learned import build_predictor, save_predictor

QUERY = LengthQuery(model="m", key="k", input_tokens=100, text_head="list ten", text_tail="list ten")


def settings(**predictor: object) -> Gateway:
    instance = {"name": "a", "url": "http://127.0.0.1:1"}
    models = [{"name": "m", "pools": [{"name": "all", "instances": [instance]}]}]
    return Gateway.model_validate({"version": 1, "models": models, "predictor": predictor})


def test_what_was_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    chosen = settings(state_file=str(tmp_path / "lengths.npz"))
    first = build_predictor(chosen)
    for _ in range(200):
        first.observe(QUERY, first.predict(QUERY), 700)
    save_predictor(chosen, first)
    assert build_predictor(chosen).predict(QUERY).q50 == pytest.approx(first.predict(QUERY).q50, rel=0.05)
    assert build_predictor(settings()).predict(QUERY).q50 < 600


def test_a_file_that_cannot_be_read_is_set_aside_and_the_gateway_starts(tmp_path: Path) -> None:
    path = tmp_path / "lengths.npz"
    path.write_bytes(b"not a model")
    assert build_predictor(settings(state_file=str(path))).predict(QUERY).q50 > 0
    assert (tmp_path / "lengths.npz.unreadable").read_bytes() == b"not a model"


def test_a_prior_that_cannot_be_read_is_the_operators_to_fix(tmp_path: Path) -> None:
    path = tmp_path / "prior.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"prior\.npz"):
        build_predictor(settings(prior=str(path)))


def test_nothing_is_written_where_no_place_is_named(tmp_path: Path) -> None:
    chosen = settings()
    save_predictor(chosen, build_predictor(chosen))
    assert list(tmp_path.iterdir()) == []
