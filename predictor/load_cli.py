"""Shell: `joulegate evaluate load`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from joulegate.errors import UserError
from joulegate.outputs import print_json

if TYPE_CHECKING:
    from predictor.forecast_evaluate import EpochReport

Traces = Annotated[list[Path] | None, typer.Option("--trace", help="Arrivals (CSV, .gz); may be repeated.")]
Warm = Annotated[Path | None, typer.Option(help="An earlier trace to start from; it is learned, not judged.")]
Epochs = Annotated[list[float] | None, typer.Option("--epoch", help="Seconds; default: 60, 300 and 1800.")]
Quantile = Annotated[
    float | None,
    typer.Option(
        help="Share of peaks that should lie below the forecast; default: as much missed as wasted."
    ),
]
Synthetic = Annotated[
    int, typer.Option(min=0, help="Instead of a trace: this many weeks, a surprise in the last.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def evaluate(
    trace: Traces = None,
    warm: Warm = None,
    epoch: Epochs = None,
    quantile: Quantile = None,
    synthetic: Synthetic = 0,
    json: AsJson = False,
) -> None:
    """Judge the load forecast: each epoch's peak from the epochs before, beside three plain forecasters."""
    from predictor.load_run import judged

    if bool(trace) == bool(synthetic):
        raise UserError("give --trace or --synthetic", "joulegate evaluate load --trace TRACE.csv")
    if quantile is not None and not 0.0 < quantile < 1.0:
        raise UserError(f"--quantile {quantile}", "between 0 and 1")
    if any(not seconds > 0.0 for seconds in epoch or []):
        raise UserError("--epoch must be above 0", "seconds: 60, 300, 1800")
    reports = judged(trace or [], warm, epoch or [60.0, 300.0, 1800.0], quantile, synthetic)
    if json:
        print_json(reports[0] if len(reports) == 1 else reports)
        return
    for found in reports:
        for seconds, report in found.by_epoch.items():
            _print(found.trace, seconds, report)


def _print(name: str, seconds: str, report: "EpochReport | None") -> None:
    if report is None:
        sys.stdout.write(f"{name}, epochs of {seconds} s: too few epochs to judge, or no request in them\n")
        return
    sys.stdout.write(
        f"{name}, {report.epochs} epochs of {seconds} s{'':12}under %   over %   over % at our under\n"
        f"  {'forecast':40}{report.under_forecast_pct:7.1f}{report.over_provision_pct:9.1f}\n"
    )
    for plain, figures in report.baselines.items():
        same = figures.over_at_same_under_pct
        shown = "-" if same is None else f"{same:.1f}"
        sys.stdout.write(
            f"  {plain:40}{figures.under_forecast_pct:7.1f}{figures.over_provision_pct:9.1f}{shown:>12}\n"
        )
