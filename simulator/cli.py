"""Shell: the command words `emulate` and `replay`."""

from pathlib import Path
from typing import Annotated

import typer

from simulator.replay_report import Engine


def emulate(
    config: Annotated[Path, typer.Option("--config", "-c", help="fleet.yaml", show_default=False)],
    json_ready: Annotated[
        bool, typer.Option("--json-ready", help="Print one JSON line once every port listens.")
    ] = False,
) -> None:
    """Serve emulated vLLM and TGI engines on emulated GPUs, in real time."""
    from joulegate.settings.fleet import Fleet
    from joulegate.settings.load import load
    from simulator import emulator

    fleet = load(config, Fleet)

    def ready(message: bytes) -> None:
        if json_ready:
            typer.echo(message.decode())
            return
        for instance in fleet.instances:
            typer.echo(f"{instance.name}: http://{fleet.host}:{instance.port} ({instance.model})", err=True)

    emulator.emulate(fleet, ready)


def replay(
    trace: Annotated[Path, typer.Argument(help="timestamp_s,input_tokens,output_tokens[,tenant]")],
    url: Annotated[str, typer.Option(help="Gateway or engine, as http://127.0.0.1:8080", show_default=False)],
    speed: Annotated[float, typer.Option(min=0.001, help="Times as fast as the trace.")] = 1.0,
    start: Annotated[float, typer.Option("--from", min=0, help="Seconds into the trace.")] = 0.0,
    duration: Annotated[float | None, typer.Option(min=0, help="Seconds of the trace.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Requests at most.")] = None,
    engine: Annotated[
        Engine, typer.Option(help="emulated: true lengths in a header; vllm: forced by min and max_tokens.")
    ] = Engine.EMULATED,
    model: Annotated[str | None, typer.Option(help="Default: the first of /v1/models.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="Default: OPENAI_API_KEY.")] = None,
    clip_input: Annotated[int | None, typer.Option(min=1, help="Tokens at most.")] = None,
    clip_output: Annotated[int | None, typer.Option(min=1, help="Tokens at most.")] = None,
    ttft_ms: Annotated[
        tuple[float, float, float], typer.Option(help="TTFT objective of short, medium, long inputs.")
    ] = (250.0, 400.0, 2000.0),
    tpot_ms: Annotated[float, typer.Option(min=0, help="TPOT objective.")] = 100.0,
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")] = False,
) -> None:
    """Send the arrivals of a trace, each at its instant, and report latency, attainment and exactness."""
    from joulegate.addresses import typed
    from joulegate.outputs import print_json
    from simulator import replay as replaying
    from simulator.window import Window

    request = replaying.Replay(
        trace=trace,
        url=typed(url),
        engine=engine,
        model=model,
        api_key_file=api_key_file,
        window=Window(start, duration, limit, speed, clip_input, clip_output),
        objectives=replaying.objectives(ttft_ms, tpot_ms),
    )
    result = replaying.replay(request, lambda line: typer.echo(line, err=True))
    if as_json:
        print_json(result)
    else:
        typer.echo(replaying.as_text(result))
