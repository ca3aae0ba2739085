"""Shell: which model reads which file; modules are imported only when one of their files is."""

import importlib
from collections.abc import Mapping
from pathlib import PurePath

from joulegate.errors import UserError
from joulegate.settings.base import File
from joulegate.settings.locate import Document
from joulegate.settings.nearest import did_you_mean

MODELS: Mapping[str, str] = {
    "gateway": "joulegate.settings.gateway:Gateway",
    "agent": "joulegate.settings.agent:AgentSettings",
    "fleet": "joulegate.settings.fleet:Fleet",
    "scenario": "joulegate.settings.scenario:Scenario",
}


def model_of(kind: str) -> type[File]:
    """The model of a kind of file. Raises UserError for a kind nobody knows."""
    target = MODELS.get(kind)
    if target is None:
        raise UserError(
            f"no file is of kind {kind!r}", did_you_mean(kind, MODELS) or f"kinds: {', '.join(MODELS)}"
        )
    module, _, name = target.partition(":")
    found: type[File] = getattr(importlib.import_module(module), name)
    return found


def kind_of(document: Document) -> str:
    """What the file says it is; else the kind that knows most of its keys; of several, what it is called."""
    top = document.value if isinstance(document.value, dict) else {}
    if isinstance(top.get("kind"), str):
        return str(top["kind"])
    words = PurePath(document.name).stem.replace("_", "-").replace(".", "-").split("-")
    keys = top.keys() - {"version", "kind"}
    named = [word for word in words if word in MODELS]
    known = {kind: len(keys & model_of(kind).model_fields.keys()) for kind in MODELS}
    best = [kind for kind, count in known.items() if count == max(known.values())]
    if named and named[0] in best:
        return named[0]
    if len(best) == 1:
        return best[0]
    raise UserError(
        f"{document.name} does not say what it configures",
        f"add a line 'kind:' with one of {', '.join(MODELS)}",
    )
