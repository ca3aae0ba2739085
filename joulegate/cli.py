"""Shell: the command table. A command's module is imported when it is called, and not before."""

import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from joulegate import __version__
from joulegate.errors import UserError
from joulegate.settings.nearest import did_you_mean

INTERRUPTED = 130
PIPE_CLOSED = 1  # as typer does it
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
SAY_HELP = {"--help", "-h"}
FIRST_AID = "gpu_agent.first_aid:first_aid"


@dataclass(frozen=True, slots=True)
class Command:
    target: str  # module:function; its parameters are typer-annotated
    help: str
    first: str = ""  # module:function, called before anything that takes long to import


COMMANDS: Mapping[str, Command] = {
    "serve": Command("router.cli:serve", "run the gateway", first="router.early:early"),
    "status": Command("router.cli:status", "what a gateway is doing, and what it saves"),
    "reload": Command("router.cli:reload", "have a gateway read its YAML again"),
    "pause": Command("router.cli:pause", "clocks to default, requests go on; --resume takes it back"),
    "uncap": Command("router.cli:uncap", "give back power caps that an earlier budget has left"),
    "drain": Command("router.cli:drain", "send an instance no new requests"),
    "recheck": Command("router.cli:recheck", "decide again what a gateway recorded"),
    "agent": Command("gpu_agent.cli:agent", "run the agent of a GPU node", first=FIRST_AID),
    "watchdog": Command(
        "gpu_agent.cli:watchdog", "run the process that resets clocks when the agent dies", first=FIRST_AID
    ),
    "doctor": Command("gpu_agent.cli:doctor", "check a GPU node: driver, permissions, who else locks clocks"),
    "demo": Command("simulator.demo_cli:demo", "two emulated fleets side by side, one under Joulegate"),
    "emulate": Command("simulator.cli:emulate", "serve emulated vLLM or TGI engines"),
    "replay": Command("simulator.cli:replay", "send the arrivals of a trace to a gateway"),
    "simulate": Command("simulator.simulate_cli:simulate", "compare policies in simulated time"),
    "profile": Command("simulator.profile_run:profile", "measure an engine over load and clock"),
    "train length": Command("predictor.length_cli:train", "learn output lengths from text"),
    "train latency": Command("predictor.latency_cli:train", "learn iteration time and power from a profile"),
    "evaluate length": Command("predictor.length_cli:evaluate", "how well output lengths are predicted"),
    "evaluate latency": Command("predictor.latency_cli:evaluate", "how well iteration time is predicted"),
    "evaluate load": Command("predictor.load_cli:evaluate", "how well the load is forecast"),
    "config check": Command("joulegate.config_cli:check", "every problem in YAML files, with its place"),
    "config show": Command("joulegate.config_cli:show", "the settings in force and where each comes from"),
    "config schema": Command("joulegate.config_cli:schema", "JSON schema of a file, for editors"),
}


def main() -> None:
    _prepare_streams()
    sys.exit(run(sys.argv[1:], COMMANDS))


def _prepare_streams() -> None:
    """Nobody's file becomes our stdout, and no name is one that cannot be printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:  # closed by who started us: the next file opened would have its number
            file = Path(os.devnull).open("r" if number == 0 else "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, file)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def run(arguments: Sequence[str], commands: Mapping[str, Command]) -> int:
    """One command from its words to its exit status; nothing but the status leaves it."""
    rest = [argument for argument in arguments if argument != "--verbose"]
    verbose = len(rest) < len(arguments)
    try:
        status = _dispatch(rest, commands)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # the reader has left: let nothing be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:  # noqa: BLE001
        # the top of the process: whatever it is becomes a line a person can read
        if verbose:
            import traceback

            traceback.print_exc()
        return _complain(_cause(error))
    return status


def _dispatch(arguments: list[str], commands: Mapping[str, Command]) -> int:
    if not arguments or arguments[0] in SAY_HELP:
        sys.stdout.write(_overview(commands))
        return 0 if arguments else 2
    if arguments[0] in {"--version", "-V"}:
        sys.stdout.write(f"joulegate {__version__}\n")
        return 0
    words = " ".join(arguments[:2])
    if words in commands:
        return _call(words, commands[words], arguments[2:])
    if arguments[0] in commands:
        return _call(arguments[0], commands[arguments[0]], arguments[1:])
    group = {name: command for name, command in commands.items() if name.startswith(arguments[0] + " ")}
    if group and (len(arguments) == 1 or arguments[1] in SAY_HELP):
        sys.stdout.write(_overview(group))
        return 0 if len(arguments) > 1 else 2
    wanted = words if group else arguments[0]
    meant = did_you_mean(words, commands) or did_you_mean(wanted, commands)
    raise UserError(f"no such command: {wanted}", meant or "joulegate --help lists the commands")


def _overview(commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands))
    table = "".join(f"  {words:<{width}}  {command.help}\n" for words, command in commands.items())
    return (
        "usage: joulegate COMMAND ...\n\n"
        f"{table}\n"
        "joulegate COMMAND --help says what a command takes. --verbose adds a traceback to an error,\n"
        "--version prints the version.\n"
    )


def _call(words: str, command: Command, arguments: list[str]) -> int:
    if command.first and not SAY_HELP.intersection(arguments):
        _named(command.first)()

    import typer
    from typer.exceptions import TyperException

    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(_named(command.target))
    try:
        result = app(arguments, prog_name=f"joulegate {words}", standalone_mode=False)
    except TyperException as error:
        near = getattr(error, "possibilities", None)  # only an unknown option has them
        option = str(getattr(error, "option_name", ""))
        help_text = did_you_mean(option, near or ()) or f"joulegate {words} --help says what it takes"
        message = error.message if near else error.format_message()
        raise UserError(message.rstrip("."), help_text) from error
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    return result if isinstance(result, int) else 0


def _named(target: str) -> Callable[..., object]:
    module, _, name = target.partition(":")
    function: Callable[..., object] = getattr(importlib.import_module(module), name)
    return function


def _cause(error: Exception) -> Exception:
    """A task group wraps the one error that ended it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _complain(error: Exception) -> int:
    if isinstance(error, UserError):
        message, help_text, status = error.message, error.help, error.status
    elif isinstance(error, OSError) and error.errno in DISK_FULL:
        message, help_text, status = f"cannot write: {error.strerror}", "free some, or write elsewhere", 1
    else:
        message, status = f"unexpected {type(error).__name__}: {error}", 1
        help_text = "this is a fault of joulegate; --verbose shows where it happened"
    label, note = _painted(sys.stderr, "error:", "1;31"), _painted(sys.stderr, "help:", "1;36")
    sys.stderr.write(f"{label} {message}\n" + (f"  {note} {help_text}\n" if help_text else ""))
    return status


def _painted(stream: TextIO, text: str, colour: str) -> str:
    plain = "NO_COLOR" in os.environ or not stream.isatty()
    return text if plain else f"\033[{colour}m{text}\033[0m"
