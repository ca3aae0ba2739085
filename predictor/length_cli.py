"""Shell: `joulegate train length` and `joulegate evaluate length`."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from joulegate.errors import UserError
from joulegate.outputs import file_for, print_json, write_text

if TYPE_CHECKING:
    from joulegate.domain import Cuts, LengthPredictor
    from predictor.length_evaluate import Judged, Report, Sample, StreamName

SHOWN_EVERY = 512  # requests between two steps of the progress bar

DataFiles = Annotated[
    list[Path] | None, typer.Option("--data", help="Prompts with answers (JSONL, .gz); may be repeated.")
]
Traces = Annotated[
    list[Path] | None,
    typer.Option("--trace", help="Arrivals without text (CSV); may be repeated, mixed by time."),
]
TenantKey = Annotated[
    str | None, typer.Option(help="Column that stands for the API key (a trace: or 'trace').")
]
Model = Annotated[Path | None, typer.Option(help="What `train length` wrote; default: the shipped prior.")]
Prior = Annotated[str, typer.Option(help="'shipped', or 'none' for history alone from nothing.")]
UnderCost = Annotated[
    float | None,
    typer.Option(
        help="Choose the class of least cost, one too low costing this much; default: most probable."
    ),
]
Split = Annotated[str, typer.Option(help="'all' rows, or 'test': only prompts that training never sees.")]
Plot = Annotated[Path | None, typer.Option(help="Write the calibration of the classes here, as SVG.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def train(
    data: DataFiles = None,
    tenant_key: TenantKey = None,
    out: Annotated[Path, typer.Option(help="Where the model is written (.npz).")] = Path("length.npz"),
    prior_only: Annotated[
        bool, typer.Option("--prior-only", help="Leave out what was learned about each model.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Learn output lengths from prompts and the lengths of their answers.

    Prompts whose crc32(prompt_id) is divisible by 5 are never learned from.
    """
    from numpy.random import default_rng
    from rich.console import Console
    from rich.progress import Progress

    from predictor.artifact import save
    from predictor.length_data import read_prompts
    from predictor.length_store import SCHEMA
    from predictor.length_train import trained

    if not data:
        raise UserError("nothing to learn from", "give --data FILE.jsonl.gz")
    file_for(out)
    rows = [row for row in read_prompts(data, tenant_key) if not row.held_out]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("training", total=1.0)
        artifact = trained(
            rows,
            prior_only,
            default_rng(0),
            lambda share, what: progress.update(task, completed=share, description=what),
        )
    save(out, SCHEMA, artifact)
    if json:
        print_json({"out": str(out), **artifact.header})
        return
    sys.stdout.write(f"{out}: learned from {len(rows)} answers\n")


def evaluate(
    data: DataFiles = None,
    trace: Traces = None,
    model: Model = None,
    prior: Prior = "shipped",
    tenant_key: TenantKey = None,
    under_cost: UnderCost = None,
    split: Split = "all",
    plot: Plot = None,
    json: AsJson = False,
) -> None:
    """Judge length prediction: each (source, model) a stream in file order; predict, then observe."""
    from joulegate.domain import Cuts
    from predictor.length_data import read_prompts, read_traces, streams
    from predictor.length_evaluate import report
    from predictor.length_store import factory

    if prior not in {"shipped", "none"}:
        raise UserError(f"--prior {prior}", "one of: shipped, none")
    if split not in {"all", "test"}:
        raise UserError(f"--split {split}", "one of: all, test")
    if bool(data) == bool(trace):
        raise UserError("give either --data or --trace", "joulegate evaluate length --data FILE.jsonl.gz")
    if plot is not None:
        file_for(plot)  # before what may take minutes
    if data:
        rows = [row for row in read_prompts(data, tenant_key) if split == "all" or row.held_out]
        found = streams(rows)
    else:
        found = read_traces(trace or [], tenant_key)
    cuts = Cuts()
    make = factory(cuts, model, use_prior=prior == "shipped")
    judged = _judged(found, make, cuts, under_cost)
    if not judged:
        raise UserError("nothing to judge", "the split is empty")
    figures = report(judged)
    if plot is not None:
        from predictor.length_plot import calibration_svg

        write_text(plot, calibration_svg(figures.calibration, f"{figures.n} answers"))
    _print(figures, json)


def _judged(
    found: "Mapping[StreamName, Sequence[Sample]]",
    make: "Callable[[], LengthPredictor]",
    cuts: "Cuts",
    under_cost: float | None,
) -> "dict[StreamName, list[Judged]]":
    """Every stream with a predictor of its own."""
    import gc
    from time import thread_time

    from rich.console import Console
    from rich.progress import Progress

    from predictor.length_evaluate import prequential

    gc.collect()
    gc.freeze()  # a collection would walk the rows read, which a gateway does not have, while time is taken
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("judging", total=sum(map(len, found.values())))

        def counted(samples: "Sequence[Sample]") -> "Iterator[Sample]":
            for start in range(0, len(samples), SHOWN_EVERY):
                yield from samples[start : start + SHOWN_EVERY]
                progress.advance(task, SHOWN_EVERY)

        return {
            name: prequential(counted(samples), make(), cuts, under_cost, thread_time)
            for name, samples in found.items()
        }


def _print(figures: "Report", json: bool) -> None:
    if json:
        print_json(figures)
        return
    for field in dataclasses.fields(figures):
        if field.name == "calibration":
            continue
        value = getattr(figures, field.name)
        if isinstance(value, dict):
            shown = "  ".join(f"{name} {_shown(number)}" for name, number in value.items())
        else:
            shown = _shown(value)
        sys.stdout.write(f"{field.name:30} {shown}\n")


def _shown(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
