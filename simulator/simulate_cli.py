"""Shell: `joulegate simulate`: policies compared on a scenario, in simulated time."""

import sys
from pathlib import Path
from typing import Annotated

import typer

PROFILE = (
    "Engine profile instead of the file's; may be repeated. With `builds`: the whole fleet, one of each size."
)


def simulate(
    scenario: Annotated[Path, typer.Argument(help="scenario.yaml", show_default=False)],
    policy: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    profile: Annotated[list[Path] | None, typer.Option(help=PROFILE)] = None,
    trace: Annotated[Path | None, typer.Option(help="Trace instead of the file's.")] = None,
    scale: Annotated[float | None, typer.Option(min=1e-6, help="Times the trace.")] = None,
    objectives: Annotated[str | None, typer.Option(help="D or T.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Arrival seeds.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    swapped: Annotated[bool, typer.Option(help="Also learn on the second half, score on the first.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the HTML report and the JSON.")] = None,
) -> None:
    """Compare policies on a scenario: energy, latency, and whether the saving counts."""
    import orjson

    from joulegate.outputs import folder_for, print_json
    from simulator.report import page
    from simulator.simulate import Request, simulate_all
    from simulator.summary import table

    request = Request(
        scenario=scenario,
        policies=tuple(policy or ()),
        profiles=tuple(profile or ()),
        trace=trace,
        scale=scale,
        objectives=objectives,
        seeds=seeds,
        jobs=jobs,
        swapped=swapped,
    )
    if out is not None:
        folder_for(out)  # before what may take hours
    answers = simulate_all(request)
    if out is not None:
        for result, made in answers:
            stem = f"{made['scenario']}_{made['profile']}"
            (out / f"{stem}.html").write_text(page(result, made), encoding="utf-8")
            (out / f"{stem}.json").write_bytes(orjson.dumps(made, option=orjson.OPT_INDENT_2))
    documents = [made for _, made in answers]
    if as_json:
        print_json(documents[0] if len(documents) == 1 else documents)
    else:
        sys.stdout.write("\n\n".join(table(made) for made in documents) + "\n")
