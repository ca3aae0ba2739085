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
    out = sweep_csv.with_name("model.json")
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


def test_training_again_leaves_one_set_of_tables(sweep_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.json"
    for clocks in ("705:1410:15", "705:1410:45"):
        command = ["train", "latency", "--data", str(sweep_csv), "--out", str(out), "--clocks", clocks]
        assert run(command, COMMANDS) == 0
    assert len(list(tmp_path.iterdir())) == 2
    assert load(out)[0].clocks[1] == 750


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


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        pytest.param("gpu,model\n", "no column", id="columns"),
        pytest.param(
            "gpu,model,tp,phase,batch,freq_mhz,latency_ms\na,b,1,nap,1,900,5\n", "'nap'", id="phase"
        ),
        pytest.param(
            "gpu,model,tp,phase,batch,freq_mhz,latency_ms\na,b,1,decode,x,900,5\n", "'x'", id="number"
        ),
        pytest.param(
            "gpu,model,tp,phase,batch,freq_mhz,latency_ms\na,b,1,decode,1,900,0\n", "above 0", id="zero"
        ),
        pytest.param("gpu,model,tp,phase,batch,freq_mhz,latency_ms\n", "no usable rows", id="empty"),
        pytest.param(
            "gpu,model,tp,phase,batch,freq_mhz,latency_ms\na,b,1,decode,1,900,5\n", "too few", id="few"
        ),
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
    for part in trained.parent.glob("model*"):
        shutil.copy(part, tmp_path)
    out = tmp_path / trained.name
    (npz,) = tmp_path.glob("*.npz")
    npz.write_bytes(npz.read_bytes()[:-1] + b"?")
    assert run(["evaluate", "latency", "--data", str(sweep_csv), "--model", str(out)], COMMANDS) == 2
    assert "damaged" in capsys.readouterr().err
    out.write_text("{}")
    assert run(["evaluate", "latency", "--data", str(sweep_csv), "--model", str(out)], COMMANDS) == 2
    assert "not a latency model" in capsys.readouterr().err


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
