"""`train latency` and `evaluate latency` as a person runs them."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from xml.dom import minidom

import numpy as np
import pytest

from joulegate.cli import COMMANDS, run
from joulegate.domain import Batch
from joulegate.engine_profile import parse_profile
from joulegate.units import MegaHertz
from predictor.latency_artifact import load
from predictor.latency_data import COLUMNS
from predictor.sweep_emulated import Blur, emulated_sweep

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "configs" / "profiles" / "a100-40g_llama-3.1-8b_tp1.json"


@pytest.fixture(scope="module")
def sweep_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decode and prefill rows, as `profile` would write them."""
    path = tmp_path_factory.mktemp("sweep") / "a100.csv"
    sweep = emulated_sweep(
        parse_profile(json.loads(PROFILE.read_text())), 160, np.random.default_rng(3), Blur(clocks=5)
    )
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for row in sweep.rows:
            if row.batch.decoding and row.batch.prefill_tokens:
                continue
            writer.writerow(
                {
                    "gpu": "A100",
                    "model": "8B",
                    "tp": 1,
                    "phase": row.phase,
                    "batch": row.batch.decoding or 1,
                    "context_tokens": row.batch.context_tokens / max(1, row.batch.decoding),
                    "new_tokens": row.batch.prefill_tokens,
                    "freq_mhz": row.clock,
                    "latency_ms": 1000.0 * row.seconds,
                    "power_w": row.watts,
                    "power_capped": int(row.capped),
                }
            )
        writer.writerow(
            {"gpu": "A100", "model": "8B", "tp": 1, "phase": "idle", "freq_mhz": 705, "power_w": 58.5}
        )
    return path


@pytest.fixture(scope="module")
def trained(sweep_csv: Path) -> Path:
    out = sweep_csv.with_name("model.npz")
    arguments = ["train", "latency", "--data", str(sweep_csv), "--out", str(out), "--clocks", "705:1410:15"]
    assert run(arguments, COMMANDS) == 0
    return out


def evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, float]:
    assert run(["evaluate", "latency", *words, "--json"], COMMANDS) == 0
    result: dict[str, float] = json.loads(capsys.readouterr().out)
    return result


def test_a_trained_model_is_saved_loaded_and_scored(
    sweep_csv: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model,) = load(trained)
    assert model.clocks == tuple(range(705, 1411, 15))
    assert model.idle_watts == 58.5
    assert model.iteration_time(Batch(8, 4000), MegaHertz(705)) > model.iteration_time(
        Batch(8, 4000), MegaHertz(1410)
    )
    scores = evaluated(capsys, "--data", str(sweep_csv), "--model", str(trained))
    assert scores["mape_pct"] < 4.0  # the rows carry 3 % noise
    assert scores["monotone_violations"] == 0


@pytest.mark.parametrize(
    ("clocks", "ladder"), [("705:1410:235", (705, 940, 1175, 1410)), ("1410,800", (800, 1410))]
)
def test_training_again_replaces_the_model(
    clocks: str, ladder: tuple[int, ...], sweep_csv: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.npz"
    out.write_bytes(b"an older one")
    command = ["train", "latency", "--data", str(sweep_csv), "--out", str(out), "--clocks", clocks]
    assert run(command, COMMANDS) == 0
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert load(out)[0].clocks == ladder


@pytest.mark.parametrize(
    "way",
    [
        ["--few-shot", "3"],
        pytest.param(["--leave-one-clock-out"], marks=pytest.mark.slow),
        ["--train-share", "0.5"],
    ],
)
def test_every_way_of_evaluating_gives_the_same_figures(
    way: list[str], sweep_csv: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = evaluated(capsys, "--data", str(sweep_csv), *way)
    assert scores["r2"] > 0.97
    assert scores["mape_pct"] < 5.0
    assert scores["power_mape_pct"] < 8.0  # an end of five clocks left out is far from the rest
    assert scores["monotone_violations"] == 0
    assert scores["search_us"] > 0.0
    assert {"p95_abs_pct", "mae_iterations_per_s", "coverage_p90", "n"} <= set(scores)


def test_serving_a_model_needs_neither_scikit_learn_nor_scipy(trained: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from predictor.latency_artifact import load\n"
        f"load(Path({str(trained)!r}))\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'sklearn', 'scipy'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


HEAD = "gpu,model,tp,phase,batch,context_tokens,new_tokens,freq_mhz,latency_ms,power_w\n"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param("gpu,model\n", "bad.csv: no column tp, phase", id="columns"),
        pytest.param(HEAD + "a,b,1,nap,1,9,0,900,5,\n", "bad.csv:2: phase: 'nap'", id="phase"),
        pytest.param(HEAD + "a,b,1,decode,x,9,0,900,5,\n", "bad.csv:2: batch: 'x'", id="number"),
        pytest.param(HEAD + "a,b,1,decode,0,9,0,900,5,\n", "bad.csv:2: batch: must be", id="no batch"),
        pytest.param(HEAD + "a,b,0,decode,1,9,0,900,5,\n", "bad.csv:2: tp: must be", id="no gpu"),
        pytest.param(HEAD + "a,b,1,decode,1,9,0,900,0,\n", "bad.csv:2: latency_ms: must be", id="zero"),
        pytest.param(HEAD + "a,b,1,decode,1,9,0,900,nan,\n", "bad.csv:2: latency_ms: 'nan'", id="nan"),
        pytest.param(HEAD + "a,b,1,decode,1,9,0,900,5,inf\n", "bad.csv:2: power_w: 'inf'", id="infinite"),
        pytest.param(HEAD + "a,b,1,decode,1,-9,0,900,5,\n", "bad.csv:2: context_tokens: '-9'", id="negative"),
        pytest.param(HEAD + "a,b,1,prefill,1,,,900,5,\n", "bad.csv:2: new_tokens: a prefill", id="no prompt"),
        pytest.param(HEAD + "a,b,1\n", "bad.csv:2: phase: ''", id="short row"),
        pytest.param(HEAD + "a,b\0,1,decode\n", "bad.csv:", id="binary"),
        pytest.param(HEAD, "no usable rows", id="empty"),
        pytest.param(HEAD + "a,b,1,decode,1,9,0,900,5,\n", "too few", id="few"),
    ],
)
def test_bad_data_is_named_and_not_traced_back(
    content: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "bad.csv"
    data.write_text(content)
    assert run(["train", "latency", "--data", str(data), "--out", str(tmp_path / "m.json")], COMMANDS) == 2
    message = capsys.readouterr().err
    assert complaint in message
    assert "Traceback" not in message


def test_a_damaged_model_is_refused(
    sweep_csv: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copy(trained, tmp_path))
    content = out.read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], b"{}", b""):
        out.write_bytes(damaged)
        assert run(["evaluate", "latency", "--data", str(sweep_csv), "--model", str(out)], COMMANDS) == 2
        assert "not a learned model" in capsys.readouterr().err


def test_the_picture_is_well_formed_and_shows_every_row(
    sweep_csv: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "error.svg"
    scores = evaluated(capsys, "--data", str(sweep_csv), "--model", str(trained), "--plot", str(picture))
    document = minidom.parseString(picture.read_text())
    dots = [dot for dot in document.getElementsByTagName("circle") if dot.getAttribute("r") == "2.0"]
    assert len(dots) == scores["n"]
    for dot in dots:
        assert 0.0 <= float(dot.getAttribute("cx")) <= 300.0
        assert 0.0 <= float(dot.getAttribute("cy")) <= 300.0


def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("latency", "length"):
        words = ["evaluate", kind, "--data", str(tmp_path / "absent"), "--plot", str(tmp_path)]
        assert run(words, COMMANDS) == 2
        assert f"cannot write {tmp_path}: it is a folder" in capsys.readouterr().err


def test_one_clock_and_no_power_are_learned_as_far_as_they_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "one.csv"
    lines = [f"a,b,1,decode,{batch},500,0,900,{10 + batch / 8}," for batch in (1, 2, 4, 8, 16, 32)]
    data.write_text("\ufeff" + HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    assert run(["train", "latency", "--data", str(data), "--out", str(tmp_path / "m.npz")], COMMANDS) == 0
    assert "power unknown" in capsys.readouterr().out
    (model,) = load(tmp_path / "m.npz")
    assert model.trained.power_error_p95 is None
    assert model.iteration_time(Batch(12, 6000), MegaHertz(900)) == pytest.approx(0.0115, rel=0.05)
    assert run(["evaluate", "latency", "--data", str(data), "--few-shot", "3"], COMMANDS) == 2
    assert "sweep more clocks" in capsys.readouterr().err


def test_ways_of_evaluating_exclude_each_other(sweep_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "latency", "--data", str(sweep_csv), "--few-shot", "2", "--leave-one-clock-out"]
    assert run(words, COMMANDS) == 2
    assert "only one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("errors", "ceiling"),
    [
        # iterations/s 100, 50, 25 and 20, each off by a tenth
        pytest.param(("1", "2", "4", "5"), 1.0 - 135.25 / 4018.75, id="all"),
        pytest.param(("1", "2", "4", ""), None, id="one unknown"),
    ],
)
def test_what_noise_leaves_a_perfect_model_is_said_where_rows_tell_theirs(
    errors: tuple[str, ...], ceiling: float | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "noisy.csv"
    times = zip((1, 8, 32, 64), (10, 20, 40, 50), errors, strict=True)
    rows = [f"X,8B,1,decode,{batch},900,{time},{error}" for batch, time, error in times]
    path.write_text("\n".join(["gpu,model,tp,phase,batch,freq_mhz,latency_ms,latency_se_ms", *rows, ""]))
    model = tmp_path / "m.npz"
    assert run(["train", "latency", "--data", str(path), "--out", str(model)], COMMANDS) == 0
    capsys.readouterr()
    words = ["--data", str(path), "--model", str(model)]
    assert evaluated(capsys, *words)["r2_ceiling"] == (None if ceiling is None else pytest.approx(ceiling))
    assert run(["evaluate", "latency", *words], COMMANDS) == 0
    assert ("a perfect model" in capsys.readouterr().out) == (ceiling is not None)


def test_where_every_time_is_the_same_there_is_no_r2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "same.csv"
    rows = [f"X,8B,1,decode,{batch},{clock},10" for clock in range(600, 1501, 100) for batch in (1, 8, 32)]
    path.write_text("\n".join(["gpu,model,tp,phase,batch,freq_mhz,latency_ms", *rows, ""]))
    assert run(["evaluate", "latency", "--data", str(path), "--json"], COMMANDS) == 0
    told = capsys.readouterr().out
    assert "NaN" not in told
    assert json.loads(told)["r2"] is None
