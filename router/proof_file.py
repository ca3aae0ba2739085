"""Shell: proofs over a restart of the gateway, which under steady traffic finds no instance idle.

Kept is what a proof was made of: the instance's address and model, its GPUs, the processes that the agent
saw on each, and their energy counters. It holds again while all of that is as it was and no counter has
started anew: then the same processes compute on the same GPUs. Two engines that change addresses and go on
running are not noticed.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from joulegate.wire import GpuState
from router.pools import Member

log = logging.getLogger(__name__)
MAX_BYTES = 4 * 1024 * 1024


class Sight(BaseModel):
    """What was seen when an instance was proven."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    model: str
    processes: dict[str, tuple[int, ...]]  # by GPU
    joules: dict[str, float]


Sights = TypeAdapter(dict[str, Sight])


class ProofFile:
    """`path` None: nothing is kept. A file that cannot be read or written costs the proofs, nothing else."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._kept = {} if path is None else _read(path)

    def holds(self, member: Member, gpus: Mapping[str, GpuState]) -> bool:
        """Whether this instance was proven before, and all is as it was."""
        kept, now = self._kept.get(member.law.name), _sight(member, gpus)
        if kept is None or now is None or kept.model_copy(update={"joules": now.joules}) != now:
            return False
        return all(now.joules[gpu] >= joules for gpu, joules in kept.joules.items())

    def keep(self, member: Member, gpus: Mapping[str, GpuState]) -> None:
        """It has just been proven."""
        sight = _sight(member, gpus)
        if sight is not None and self._path is not None:
            self._kept[member.law.name] = sight
            self._save(self._path)

    def forget(self, member: Member) -> None:
        """It may run elsewhere now."""
        if self._kept.pop(member.law.name, None) is not None and self._path is not None:
            self._save(self._path)

    def _save(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_name(path.name + ".new")
            fresh.write_bytes(Sights.dump_json(self._kept))
            fresh.replace(path)
        except OSError as error:
            log.error("proofs of GPUs are not kept", extra={"file": str(path), "problem": str(error)})


def _sight(member: Member, gpus: Mapping[str, GpuState]) -> Sight | None:
    """None: the agent does not show every GPU with the processes on it."""
    states = [gpus[gpu] for gpu in member.gpus if gpu in gpus and gpus[gpu].processes]
    if len(states) < len(member.gpus):
        return None
    endpoint = member.endpoint
    return Sight(
        address=f"{endpoint.host}:{endpoint.port}",
        model=endpoint.model,
        processes={state.uuid: tuple(sorted(state.processes)) for state in states},
        joules={state.uuid: state.energy_j for state in states},
    )


def _read(path: Path) -> dict[str, Sight]:
    try:
        with path.open("rb") as file:
            return Sights.validate_json(file.read(MAX_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        log.warning("proofs of GPUs cannot be read", extra={"file": str(path), "problem": str(error)})
        return {}
