"""Pure: which models an engine says that it serves, on its /v1/models page."""

from collections.abc import Collection

import orjson

NAMED = 3  # models named to people
LONGEST_NAME = 100  # characters of each
MOST_TOKENS = 10**9  # of a context; what says more says nothing


def listed(page: bytes) -> dict[str, int | None]:
    """Names on the page, LoRA adapters among them, each with the longest context it takes, in tokens.

    Empty: garbage, or it lists none; that says nothing.
    """
    try:
        found = orjson.loads(page)
    except orjson.JSONDecodeError:
        return {}
    cards = found.get("data") if isinstance(found, dict) else None
    if not isinstance(cards, list):
        return {}
    named = [(card.get("id"), card.get("max_model_len")) for card in cards if isinstance(card, dict)]
    return {name: _tokens(length) for name, length in named if isinstance(name, str) and name}


def misfit(served: Collection[str], wanted: Collection[str]) -> str:
    """What is wrong, for people, where an engine lists models and none of `wanted`; else ""."""
    if not served or not wanted or not set(wanted).isdisjoint(served):
        return ""
    names = [name[:LONGEST_NAME] for name in sorted(served)]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"serves {', '.join(names[:NAMED])}{more}, not {', '.join(wanted)}"


def _tokens(found: object) -> int | None:
    return found if type(found) is int and 0 < found < MOST_TOKENS else None
