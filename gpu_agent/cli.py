"""Shell: `joulegate agent`, `joulegate watchdog`, `joulegate doctor`."""

from pathlib import Path
from typing import Annotated

import typer

SettingsFile = Annotated[Path, typer.Option("--config", "-c", help="The node's agent.yaml.")]
Verbose = Annotated[bool, typer.Option("--debug", help="Log more.")]


def agent(
    config: SettingsFile,
    with_watchdog: Annotated[
        bool, typer.Option("--with-watchdog", help="Start the watchdog too, where no service manager does.")
    ] = False,
    debug: Verbose = False,
) -> None:
    """Run the agent of this node: it sets GPU clocks for whoever holds its lease, and reads the GPUs."""
    import logging

    from gpu_agent.agent import Companion, run
    from gpu_agent.json_logs import logging_to_stderr
    from joulegate.settings.agent import AgentSettings
    from joulegate.settings.load import load

    settings = load(config, AgentSettings)
    with logging_to_stderr(logging.DEBUG if debug else logging.INFO):
        run(settings, Companion(config) if with_watchdog else None)


def watchdog(
    config: SettingsFile,
    exit_with_agent: Annotated[
        bool,
        typer.Option("--exit-with-agent", help="Leave once the last agent has gone and all is restored."),
    ] = False,
    debug: Verbose = False,
) -> None:
    """Run the process that kills a hung agent and gives its GPUs back; one beside each agent."""
    import logging

    from gpu_agent.json_logs import logging_to_stderr
    from gpu_agent.watchdog_process import run
    from joulegate.settings.agent import AgentSettings
    from joulegate.settings.load import load

    settings = load(config, AgentSettings)
    with logging_to_stderr(logging.DEBUG if debug else logging.INFO):
        run(settings, exit_with_agent)
