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
    import contextlib

    from gpu_agent.drivers import driver_for, undo_for
    from gpu_agent.recovery import free_left_overs
    from gpu_agent.state_file import StateFile, claimed
    from joulegate.logs import logging_to
    from joulegate.settings.agent import AgentSettings
    from joulegate.settings.load import load

    settings = load(config, AgentSettings)
    with contextlib.ExitStack() as stack:
        stack.enter_context(logging_to("json", "debug" if debug else "info"))
        if settings.allow_writes:
            stack.enter_context(claimed(settings.state_dir))
            state = StateFile(settings.state_dir, undo_for(settings))
            free_left_overs(driver_for(settings), state, settings.clocks.site_lock_mhz)
        from gpu_agent.agent import Companion, run  # the web server comes after the clocks

        outdated = run(settings, Companion(config) if with_watchdog else None)
    if outdated:
        _start_again()


def watchdog(
    config: SettingsFile,
    exit_with_agent: Annotated[
        bool,
        typer.Option("--exit-with-agent", help="Leave once the last agent has gone and all is restored."),
    ] = False,
    debug: Verbose = False,
) -> None:
    """Run the process that kills a hung agent and gives its GPUs back; one beside each agent."""
    from gpu_agent.watchdog_process import run
    from joulegate.logs import logging_to
    from joulegate.settings.agent import AgentSettings
    from joulegate.settings.load import load

    settings = load(config, AgentSettings)
    with logging_to("json", "debug" if debug else "info"):
        outdated = run(settings, exit_with_agent)
    if outdated:
        _start_again()


def _start_again() -> None:
    """In this process's place: after an upgrade of the driver only a new one can load its library."""
    import os
    import sys

    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def doctor(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="The node's agent.yaml; none: NVIDIA GPUs, watching."),
    ] = None,
    agent: Annotated[
        bool, typer.Option("--agent", help="Examine this GPU node, as is done without being asked.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> int:
    """Say what works on this GPU node, what does not, and how to mend it. Changes nothing."""
    import sys

    from gpu_agent.diagnosis import Level, diagnose
    from gpu_agent.doctor import examine
    from joulegate.outputs import print_json
    from joulegate.settings.agent import AgentSettings, NvmlDevice
    from joulegate.settings.load import load

    settings = (
        load(config, AgentSettings) if config else AgentSettings(version=1, device=NvmlDevice(kind="nvml"))
    )
    findings = diagnose(examine(settings))
    if as_json:
        print_json([{"level": f.level.value, "what": f.what, "fix": f.fix} for f in findings])
    else:
        for finding in findings:
            sys.stdout.write(f"{finding.level.value:<8} {finding.what}\n")
            if finding.fix:
                sys.stdout.write(f"{'fix:':>8} {finding.fix}\n")
    return 1 if any(finding.level is Level.FAILURE for finding in findings) else 0
