"""Shell: `joulegate serve`, and the commands that talk to a running gateway."""

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from joulegate.addresses import key_of, typed
from joulegate.errors import UserError
from joulegate.outputs import print_json

Url = Annotated[str, typer.Option("--url", help="The gateway.")]
KeyFile = Annotated[Path | None, typer.Option(help="File with the admin key; default: $JOULEGATE_ADMIN_KEY.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_URL = "http://127.0.0.1:8080"
PIPED_COLUMNS = 160
RECORD = "control.record_file makes one"
Json = dict[str, Any]


def serve(
    config: Annotated[Path, typer.Option("--config", "-c", help="gateway.yaml.")],
) -> None:
    """Run the gateway until SIGTERM; SIGHUP reads the file again."""
    from joulegate.logs import logging_to
    from joulegate.settings.gateway import Gateway
    from joulegate.settings.load import load
    from router.serve import serve_gateway

    settings = load(config, Gateway)
    with logging_to(settings.log.format, settings.log.level):
        serve_gateway(settings, config)


def status(url: Url = DEFAULT_URL, admin_key_file: KeyFile = None, json: AsJson = False) -> None:
    """Show pools, instances, clocks and the latest decision of each."""
    with _asked(url, "/admin/fleet", None, admin_key_file, "models") as picture:
        if json:
            print_json(picture)
            return
        from rich.console import Console

        from router.status_view import view

        # a pipe has no width: rich would take 80 columns and cut names short
        console = Console() if sys.stdout.isatty() else Console(width=PIPED_COLUMNS)
        console.print(view(picture))


def reload(url: Url = DEFAULT_URL, admin_key_file: KeyFile = None, json: AsJson = False) -> None:
    """Read gateway.yaml again: says what changed, what needs a restart, what was refused."""
    with _asked(url, "/admin/reload", {}, admin_key_file, "refused", accept=(200, 422)) as report:
        if report["refused"]:
            raise UserError(f"the file was refused, the old settings stay\n{report['refused']}", status=1)
        if json:
            print_json(report)
            return
        for word, keys in (("applied", report["applied"]), ("needs a restart", report["needs_restart"])):
            for key in keys:
                sys.stdout.write(f"{word}: {key}\n")
        if not report["applied"] and not report["needs_restart"]:
            sys.stdout.write("nothing changed\n")


def pause(
    pool: Annotated[str | None, typer.Option(help="Only this pool.")] = None,
    node: Annotated[str | None, typer.Option(help="Only the pools on this agent's node.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Take it back.")] = False,
    url: Url = DEFAULT_URL,
    admin_key_file: KeyFile = None,
) -> None:
    """Let clocks go back to default; requests go on. `--resume` takes it back."""
    body = {"pool": pool, "node": node, "resume": resume}
    with _asked(url, "/admin/pause", body, admin_key_file, "pools") as answer:
        for entry in answer["pools"]:
            sys.stdout.write(f"{entry['pool']}: {'paused' if entry['paused'] else 'under control'}\n")


def uncap(url: Url = DEFAULT_URL, admin_key_file: KeyFile = None, json: AsJson = False) -> None:
    """Give back the power caps that an earlier budget has left, where none is enforced now."""
    with _asked(url, "/admin/uncap", {}, admin_key_file, "lifting") as answer:
        if json:
            print_json(answer)
            return
        for gpu, watts in answer["lifting"].items():
            sys.stdout.write(f"{gpu}: {watts:.0f} W, being lifted\n")
        if not answer["lifting"]:
            sys.stdout.write("no cap of a budget stands\n")


def drain(
    instance: Annotated[str, typer.Argument(help="Instance, as gateway.yaml names it.")],
    resume: Annotated[bool, typer.Option("--resume", help="Take it back.")] = False,
    url: Url = DEFAULT_URL,
    admin_key_file: KeyFile = None,
) -> None:
    """Send an instance no new requests; those it has go on."""
    body = {"instance": instance, "resume": resume}
    with _asked(url, "/admin/drain", body, admin_key_file, "draining") as answer:
        state = "draining" if answer["draining"] else "in rotation"
        sys.stdout.write(f"{answer['instance']}: {state}, {answer['running']} requests running\n")


def recheck(
    recording: Annotated[Path, typer.Argument(help="What control.record_file wrote.", show_default=False)],
    json: AsJson = False,
) -> None:
    """Decide again what a gateway recorded: the same, one by one? Exit code 1 where it is not."""
    from control.playback import playback

    decisions, different, first = 0, 0, None
    try:
        with recording.open("rb") as lines:
            for step in playback(lines):
                decisions += 1
                if not step.same:
                    different, first = different + 1, first or step
    except OSError as error:
        raise UserError(f"cannot read {recording}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{recording} is no recording of this version", RECORD) from error
    if not decisions:
        raise UserError(f"{recording} has no decision in it", RECORD)
    if json:
        print_json({"decisions": decisions, "different": different, "first": first})
    elif first is None:
        sys.stdout.write(f"{decisions} decisions, all as recorded\n")
    else:
        sys.stdout.write(f"{different} of {decisions} decisions differ; the first in line {first.line}:\n")
        sys.stdout.write(f"recorded: {first.recorded}\nnow:      {first.played}\n")
    raise typer.Exit(1 if different else 0)


@contextmanager
def _asked(
    url: str,
    path: str,
    body: Json | None,
    key_file: Path | None,
    part: str,
    accept: tuple[int, ...] = (200,),
) -> Iterator[Json]:
    """One call of the admin API, a GET where there is no `body`; every answer to it has a `part`.

    An answer in which something is missed while it is read is not a gateway's. Raises UserError.
    """
    answer = _ask(url, path, body, key_file, accept)
    try:
        if part not in answer:
            raise LookupError(part)
        yield answer
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{url}{path} is not a gateway's answer", "is it the gateway's port?") from error


def _ask(url: str, path: str, body: Json | None, key_file: Path | None, accept: tuple[int, ...]) -> Json:
    """Empty where the answer is no JSON object. Raises UserError."""
    from joulegate.settings.load import read_secret
    from router.http_client import HttpClient, Reply, Unreachable

    url = typed(url)
    key = key_of(read_secret(None, key_file) or os.environ.get("JOULEGATE_ADMIN_KEY"))

    async def call() -> Reply:
        client = HttpClient(url, key)
        try:
            if body is None:
                return await client.get(path, 5.0)
            return await client.post(path, orjson.dumps(body), 5.0)
        finally:
            await client.close()

    try:
        reply = asyncio.run(call())
    except Unreachable as error:
        raise UserError(
            f"no gateway answers: {error}", "is it running? name it with --url", status=1
        ) from error
    if reply.status in (401, 403):
        raise UserError(f"{url} refuses: the admin key is needed", "--admin-key-file or $JOULEGATE_ADMIN_KEY")
    if reply.status not in accept:
        said = reply.body[:300].decode(errors="replace")
        raise UserError(_detail(reply.body) or f"{url}{path} answered {reply.status}: {said}", status=1)
    return _object(reply.body)


def _detail(body: bytes) -> str:
    """Why a gateway refused, in its own words; empty where it is none that answered."""
    detail = _object(body).get("detail")
    return detail if isinstance(detail, str) else ""


def _object(body: bytes) -> Json:
    """Empty for what is no JSON object."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}
