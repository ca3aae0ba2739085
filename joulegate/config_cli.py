"""Shell: `config check`, `config show`, `config schema`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from joulegate.errors import UserError
from joulegate.outputs import print_json
from joulegate.settings.base import File
from joulegate.settings.load import (
    Loaded,
    SettingsError,
    formatted,
    open_secrets,
    read_document,
    validate,
)
from joulegate.settings.registry import kind_of, model_of
from joulegate.settings.render import editor_schema, effective, yaml_lines

Kind = Annotated[str | None, typer.Option(help="gateway, agent, fleet or scenario; default: found out.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def check(
    files: Annotated[list[Path], typer.Argument(help="YAML files.", show_default=False)],
    kind: Kind = None,
    json: Json = False,
) -> int:
    """Find every problem in settings files, without starting anything. Exit status 0 or 2."""
    results = [_checked(file, kind) for file in files]
    if json:
        print_json([result for _, result in results])
    else:
        sys.stdout.write("".join(text + "\n" for text, _ in results))
    return 0 if all(result["ok"] for _, result in results) else 2


def show(
    file: Annotated[Path, typer.Argument(help="YAML file.", show_default=False)],
    kind: Kind = None,
    json: Json = False,
) -> None:
    """Print the settings in force: defaults filled in, variables expanded, secrets masked, origins named."""
    loaded, _ = _loaded(file, kind)
    entries = effective(loaded.settings, loaded.document)
    if json:
        print_json(
            [{"path": entry.dotted, "value": entry.value, "origin": entry.origin} for entry in entries]
        )
    else:
        sys.stdout.write("\n".join(yaml_lines(entries)) + "\n")


def schema(kind: Annotated[str, typer.Argument(help="gateway, agent, fleet or scenario.")]) -> None:
    """Print the JSON schema (draft 7) of a kind of file, for editors that check YAML while one types."""
    print_json(editor_schema(model_of(kind), kind))


def _loaded(file: Path, kind: str | None) -> tuple[Loaded[File], str]:
    document = read_document(file, os.environ)
    if document.value is None:
        raise SettingsError(document, document.problems)
    found = kind or kind_of(document)
    return validate(document, model_of(found), file.absolute().parent), found


def _checked(file: Path, kind: str | None) -> tuple[str, dict[str, object]]:
    """The text and the JSON of one file's result."""
    name = os.fsencode(file).decode(errors="backslashreplace")  # JSON is UTF-8, a file's name may be anything
    try:
        loaded, found = _loaded(file, kind)
    except SettingsError as error:
        text = "\n".join(formatted(error.document, problem) for problem in error.problems)
        return text, {"file": name, "ok": False, "problems": _problems(error)}
    except UserError as error:
        problem = {"message": error.message, "help": error.help}
        text = f"{error.message}\n  help: {error.help}" if error.help else error.message
        return text, {"file": name, "ok": False, "problems": [problem]}
    for path, secret in open_secrets(loaded.settings):
        place = loaded.document.place(path)
        where = f"{file}:{place.line}:{place.column}: {'.'.join(map(str, path))}"
        sys.stderr.write(f"warning: {where}: every user can read {secret}\n  help: chmod o-rwx {secret}\n")
    for doubt in loaded.doubts:
        sys.stderr.write(f"warning: {formatted(loaded.document, doubt)}\n")
    return f"{file}: ok ({found})", {"file": name, "ok": True, "kind": found, "problems": []}


def _problems(error: SettingsError) -> list[dict[str, object]]:
    return [
        {
            "line": problem.place.line,
            "column": problem.place.column,
            "path": ".".join(map(str, problem.path)),
            "message": problem.message,
            "help": problem.help,
        }
        for problem in error.problems
    ]
