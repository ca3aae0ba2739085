"""Shell: the command words `emulate` and `replay`."""

from pathlib import Path
from typing import Annotated

import typer


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
