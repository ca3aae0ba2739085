"""Shell: the command word `demo`."""

import asyncio
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

PROFILE = "profiles/h100_llama-3.1-8b_tp1.json"
TRACE = "traces/azure2023_conv_10min.csv"
LINE_EVERY = 10.0  # seconds between two lines where nobody watches a screen


def demo(
    duration: Annotated[float, typer.Option(min=5.0, help="Seconds of the trace to play.")] = 60.0,
    trace: Annotated[Path | None, typer.Option(help="Arrivals to play instead of the shipped ones.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Stay up afterwards, until Ctrl-C.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the result to this file.")] = None,
) -> None:
    """Two emulated fleets, the same arrivals to both, one of them under Joulegate: what it saves."""
    import orjson
    from rich.console import Console

    from joulegate.arrivals import read_trace
    from joulegate.errors import UserError
    from joulegate.outputs import file_for
    from joulegate.shipped import shipped
    from simulator.demo import Demo, run, standing
    from simulator.demo_summary import lines
    from simulator.window import Window

    if find_spec("openai") is None:
        raise UserError("the demo's OpenAI client is not installed", "pip install '.[demo]' in the checkout")
    if json is not None:
        file_for(json)
    console = Console(stderr=True)
    arrivals = Window(duration=duration).cut(read_trace(trace or shipped(TRACE)))
    if not arrivals:
        raise UserError("the trace has no request in that time", "give a longer --duration")

    async def play(demo: Demo) -> None:
        async with standing(demo) as sides:
            result = await run(demo, sides)
            out = Console()
            for text in lines(result):
                out.print(text, highlight=False, soft_wrap=True)
            if json is not None:
                json.write_bytes(orjson.dumps(result.document(), option=orjson.OPT_INDENT_2))
            if keep:
                out.print(_how_to_call(sides[0].url), highlight=False)
                await asyncio.Event().wait()
            out.print("next       joulegate demo --keep, then point an OpenAI client at it", highlight=False)

    with tempfile.TemporaryDirectory(prefix="joulegate-demo-") as folder, _Screen(console) as screen:
        asyncio.run(
            play(
                Demo(Path(folder), shipped(PROFILE), arrivals, screen.watch, lambda text: console.print(text))
            )
        )


def _how_to_call(url: str) -> str:
    return (
        f"base URL   {url}/v1   (no key)   more: joulegate status --url {url}\n"
        f"try        curl -N {url}/v1/chat/completions -H 'content-type: application/json' -d "
        """'{"model":"llama-3.1-8b","stream":true,"messages":[{"role":"user","content":"hello"}]}'\n"""
        "           Ctrl-C ends it"
    )


class _Screen:
    """A live table on a terminal; a line now and then elsewhere."""

    def __init__(self, console: Any) -> None:
        from rich.live import Live

        self._console = console
        self._live = (
            Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None
        )
        self._said = -LINE_EVERY

    def __enter__(self) -> "_Screen":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def watch(self, ours: dict[str, Any], watts_default: float, seconds: float, saved: float | None) -> None:
        from simulator.demo_view import line, screen

        if self._live is not None:
            self._live.update(screen(ours, watts_default, seconds, saved))
        elif seconds - self._said >= LINE_EVERY:
            self._said = seconds
            text = line(ours, watts_default, seconds)
            self._console.print(text, highlight=False, soft_wrap=True)
