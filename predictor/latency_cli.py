"""Shell: `train latency` and `evaluate latency`."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from joulegate.errors import UserError
from joulegate.outputs import file_for, print_json, write_text

if TYPE_CHECKING:
    from predictor.latency_data import Sweep
    from predictor.latency_evaluate import Prediction
    from predictor.latency_report import Report, Way
    from predictor.table import TableModel

MOST_MHZ = 10_000
Data = Annotated[
    list[Path],
    typer.Option(
        "--data", help="CSV of a sweep (what `profile` writes). Several: repeat, or list.", show_default=False
    ),
]
More = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="Further files of --data.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Seed = Annotated[int, typer.Option(help="Seed of the split and of the folds.")]


def train(
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Model to write (.npz).")],
    more: More = None,
    clocks: Annotated[
        str,
        typer.Option(
            help="Every clock it supports, MHz: LOW:HIGH:STEP or comma separated; default: those swept."
        ),
    ] = "",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Learn iteration time and power of every engine in a sweep."""
    models = learn([*data, *(more or ())], out, _ladder(clocks), seed)
    summary = [
        {
            "engine": model.trained.engine,
            "rows": model.trained.rows,
            "time_error_p95_pct": 100.0 * model.trained.time_error_p95,
            "power_error_p95_pct": None
            if model.trained.power_error_p95 is None
            else 100.0 * model.trained.power_error_p95,
            "residual_share": model.trained.residual_share,
        }
        for model in models
    ]
    if json:
        print_json({"model": str(out), "engines": summary})
        return
    for line in summary:
        power = line["power_error_p95_pct"]
        watts = f"power within {power:.1f} %" if power is not None else "power unknown"
        sys.stdout.write(
            f"{line['engine']}: {line['rows']} rows; 95 % of unseen rows: "
            f"time within {line['time_error_p95_pct']:.1f} %, {watts}\n"
        )


def _one_thread() -> None:
    """Many small systems are solved: several threads, where others work too, take ten times the CPU time.

    Libraries read this when they are loaded.
    """
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")


def learn(files: Sequence[Path], out: Path, clocks: Sequence[int], seed: int) -> "list[TableModel]":
    """Learn every engine in `files` and write `out`. Raises UserError."""
    _one_thread()
    import numpy as np

    from predictor.artifact import data_hash
    from predictor.latency_artifact import save
    from predictor.latency_train import train as learned

    file_for(out)
    models = []
    for sweep in _sweeps(files):
        sys.stderr.write(f"{sweep.engine.name}: {len(sweep.rows)} rows\n")
        models.append(learned(sweep, clocks, np.random.default_rng(seed)).model)
    save(out, models, data_hash(file.read_bytes() for file in files))
    return models


def evaluate(
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="CSV of a sweep. Several: repeat, or list.")
    ] = None,
    more: More = None,
    model: Annotated[Path | None, typer.Option(help="Score this model as it is, on all rows.")] = None,
    few_shot: Annotated[
        int, typer.Option(min=0, help="Learn the highest clock and this many more; predict the other clocks.")
    ] = 0,
    leave_one_clock_out: Annotated[
        bool, typer.Option(help="Predict each clock from all the others.")
    ] = False,
    leave_one_load_out: Annotated[
        bool, typer.Option(help="Predict each batch size, and each prompt length, from all the others.")
    ] = False,
    train_share: Annotated[
        float, typer.Option(help="Share of rows learned when neither is asked for.")
    ] = 0.9,
    emulated: Annotated[
        Path | None, typer.Option(help="Instead of --data: an engine profile; sweep a hidden variant of it.")
    ] = None,
    rows: Annotated[int, typer.Option(min=10, help="Rows of an emulated sweep.")] = 2000,
    plot: Annotated[
        Path | None, typer.Option(help="Draw calibration and error by clock and load into this SVG.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Say how well iteration time and power of rows not learned are predicted."""
    if (data is None) == (emulated is None):
        raise UserError(
            "one of --data and --emulated is needed", "joulegate evaluate latency --data sweep.csv"
        )
    if plot is not None:
        file_for(plot)  # before what may take minutes
    _one_thread()
    from predictor.latency_report import report

    sweeps = _emulated(emulated, rows, seed) if emulated else _sweeps([*(data or ()), *(more or ())])
    left_out = {"clock": leave_one_clock_out, "load": leave_one_load_out}
    way = _way(model, few_shot, [what for what, asked in left_out.items() if asked], train_share)
    result, predictions = report(
        sweeps, way, seed, time.perf_counter, lambda text: sys.stderr.write(text + "\n")
    )
    if plot is not None:
        _draw(plot, predictions)
    if json:
        print_json(result.document())
    else:
        sys.stdout.write(_table(result))


def _way(model: Path | None, few_shot: int, left_out: Sequence[str], train_share: float) -> "Way":
    from predictor.latency_report import Way

    if (model is not None) + (few_shot > 0) + len(left_out) > 1:
        raise UserError("only one of --model, --few-shot, --leave-one-clock-out and --leave-one-load-out")
    if not 0.0 < train_share < 1.0:
        raise UserError(f"--train-share {train_share}: must lie between 0 and 1")
    if model is not None:
        return Way("model", model=_loaded(model))
    if left_out:
        return Way(f"leave-one-{left_out[0]}-out")
    return Way("few-shot", few_shot=few_shot) if few_shot else Way("split", train_share=train_share)


def _draw(path: Path, predictions: "Sequence[Prediction]") -> None:
    from predictor.latency_plot import picture

    write_text(path, picture(predictions))


def _sweeps(files: Sequence[Path]) -> "list[Sweep]":
    from predictor.latency_data import merged, read_sweeps

    sweeps = []
    for file in files:
        try:
            with file.open(newline="", encoding="utf-8-sig") as lines:
                found, flagged = read_sweeps(lines, str(file))
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}", "check the path") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{file} is not UTF-8 text: byte {error.start}", "is it a CSV file?") from error
        if flagged:
            sys.stderr.write(f"{file}: {flagged} flagged rows left out\n")
        sweeps += found
    if not sweeps:
        raise UserError("no usable rows in the data", "every row is flagged, or the files are empty")
    return merged(sweeps)


def _emulated(profile: Path, rows: int, seed: int) -> "list[Sweep]":
    import numpy as np
    import orjson

    from joulegate.engine_profile import parse_profile
    from predictor.sweep_emulated import Blur, emulated_sweep

    try:
        document = orjson.loads(profile.read_bytes())
        return [emulated_sweep(parse_profile(document), rows, np.random.default_rng(seed), Blur())]
    except (OSError, ValueError) as error:
        raise UserError(f"{profile}: {error}", "configs/profiles holds engine profiles") from error


def _loaded(path: Path) -> "Mapping[str, TableModel]":
    from predictor.latency_artifact import load

    return {model.trained.engine: model for model in load(path)}


def _ladder(text: str) -> list[int]:
    if not text:
        return []
    try:
        if ":" in text:
            low, high, step = (int(part) for part in text.split(":"))
            clocks = [*range(low, min(high, MOST_MHZ), step), high]
        else:
            clocks = sorted({int(part) for part in text.split(",")})
        if not all(0 < clock <= MOST_MHZ for clock in clocks):
            raise ValueError("no clock of a GPU")
    except ValueError as error:
        raise UserError(
            f"--clocks {text!r}: expected LOW:HIGH:STEP or a list, in MHz", "for example 210:1980:15"
        ) from error
    return clocks


def _table(result: "Report") -> str:
    total = result.total
    lines = [f"{result.way}, {total.n} rows predicted"]
    ceiling = "" if total.r2_ceiling is None else f" (a perfect model: {total.r2_ceiling:.4f})"
    power = "unknown" if total.power_mape_pct is None else f"{total.power_mape_pct:.2f} %"
    lines += [
        f"  iterations/s      R2 {total.r2:.4f}{ceiling}, mean error {total.mae_iterations_per_s:.3g}",
        f"  iteration time    mean error {total.mape_pct:.2f} %, 95 % within {total.p95_abs_pct:.2f} %",
        f"  inside the model's 90 % band  {100 * total.coverage_p90:.1f} %",
        f"  power             mean error {power}",
        f"  monotone violations {total.monotone_violations}",
        f"  search of every clock {result.search_us:.0f} us",
    ]
    for name, scores in result.engines.items():
        watts = "" if scores.power_mape_pct is None else f", power {scores.power_mape_pct:.2f} %"
        lines.append(f"    {name}: {scores.n} rows, time {scores.mape_pct:.2f} %{watts}")
    return "\n".join(lines) + "\n"
