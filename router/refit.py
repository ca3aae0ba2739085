"""Shell: an engine that is no longer what its model learned is learned anew, beside the requests.

One refit at a time, whatever the fleet: samples go into a CSV, `predictor.refit_child` learns from it at the
lowest priority in a process of its own, its model is loaded in a thread, swapped in whole, and kept in
`predictor.models_dir`. When any of that fails the old model stays, corrected as before, and `/admin/fleet`, a
metric and the log say so.
"""

import asyncio
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from joulegate.domain import EngineModel
from joulegate.errors import UserError
from joulegate.units import Seconds
from predictor.latency_artifact import load
from predictor.latency_data import Engine, Row
from predictor.online_drift import DriftSettings, RefitReason, refit_reason
from predictor.online_refit import as_csv
from router.child import running
from router.pools import Fleet, Member

log = logging.getLogger(__name__)
LOOK_EVERY = 5.0  # seconds
PATIENCE = 600.0  # seconds for a child at the lowest priority of a busy machine
CHILD = (sys.executable, "-m", "predictor.refit_child")


class RefitFailed(Exception):
    """Why there is no new model."""


@dataclass(slots=True)
class Refitter:
    """Looks over the fleet every few seconds."""

    fleet: Fleet
    rules: DriftSettings
    clock: Callable[[], float]
    child: tuple[str, ...] = CHILD  # gets the names of its input and output, then every clock

    async def run(self) -> None:
        started = Seconds(self.clock())
        for _, _, member in self.fleet.members():
            member.speed.refits.at = started
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await self.look()

    async def look(self) -> None:
        """Refit every instance that asks for it, one after the other."""
        for _, _, member in self.fleet.members():
            speed = member.speed
            since = Seconds(self.clock() - speed.refits.at)
            reason = refit_reason(speed.drifting, speed.outside, speed.samples, since, self.rules)
            if reason is not None and speed.profiled:
                await self._refit(member, reason)

    async def _refit(self, member: Member, reason: RefitReason) -> None:
        refits, where = member.speed.refits, {"instance": member.law.name, "reason": reason.value}
        log.info("learning an engine anew", extra={**where, "samples": member.speed.samples})
        try:
            model = await _learned(member, self.child)
        except RefitFailed as error:
            refits.failed += 1
            refits.problem = str(error)
            log.error(
                "an engine could not be learned anew: its model stays", extra={**where, "problem": str(error)}
            )
        else:
            refits.done += 1
            refits.problem = ""
            member.speed.adopt(member.law, model)
            log.info("an engine was learned anew", extra=where)
        refits.at = Seconds(self.clock())


async def _learned(member: Member, child: Sequence[str]) -> EngineModel:
    law = member.law
    assert law.model is not None
    engine = Engine(
        "gateway", law.name, member.endpoint.engine.value, member.model_name, law.tp, whole_batch=False
    )
    lessons, clocks = member.speed.lessons(law), [str(clock) for clock in law.model.clocks]
    try:
        with tempfile.TemporaryDirectory(prefix="joulegate-refit-") as folder:
            data, out = Path(folder) / "samples.csv", Path(folder) / "model.npz"
            await asyncio.to_thread(_write, data, engine, lessons)
            await _run([*child, str(data), str(out), *clocks], Path(folder) / "said")
            (model,) = await asyncio.to_thread(load, out)
            if member.speed.refits.kept is not None:
                await asyncio.to_thread(_keep, out, member.speed.refits.kept)
    except OSError as error:
        raise RefitFailed(str(error)) from error
    except UserError as error:
        raise RefitFailed(error.message) from error
    return model


def _write(path: Path, engine: Engine, lessons: Callable[[], list[Row]]) -> None:
    path.write_text(as_csv(engine, lessons()), encoding="utf-8")


def _keep(model: Path, place: Path) -> None:
    """For the next start. A model that cannot be kept is served all the same."""
    part = place.with_suffix(".part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model, part)
        part.replace(place)
    except OSError as error:
        log.error(
            "a learned model will not outlive the gateway", extra={"file": str(place), "problem": str(error)}
        )


async def _run(words: Sequence[str], said: Path) -> None:
    """What it says goes to a file: a pipe may still be open when a cancelled task has ended."""
    with said.open("wb") as errors:
        try:
            async with running(words, stderr=errors) as process:
                await asyncio.wait_for(process.wait(), PATIENCE)
        except TimeoutError as error:
            raise RefitFailed(f"not done after {PATIENCE:.0f} s") from error
    if process.returncode != 0:
        raise RefitFailed(_last_line(said) or f"the child ended with {process.returncode}")


def _last_line(path: Path) -> str:
    return path.read_text(errors="replace").strip().rpartition("\n")[2]
