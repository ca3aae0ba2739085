"""Shell: one JSON document over HTTP, for the demo's own look at its processes."""

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

TIMEOUT = 3.0  # seconds


async def fetch_json(url: str) -> Any:
    """What `url` answers with status 200, decoded; None if it does not."""
    return await asyncio.to_thread(_fetch, url)


def _fetch(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:
            return json.load(reply)
    except (urllib.error.URLError, OSError, ValueError):
        return None
