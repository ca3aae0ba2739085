"""Pure: what replicas tell each other of proven GPUs, so that a new leader need not wait for idle instances.

Told is a checksum of the GPUs that an instance's settings name: a replica with others takes no notice.
"""

from collections.abc import Iterable, Mapping, Sequence
from zlib import crc32

from control.mapping import Proof, Standing
from joulegate.units import Seconds
from router.fleet import Health
from router.pools import Member


class Proofs:
    """Of the members of one gateway."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members

    def tell(self) -> dict[str, int]:
        return {member.law.name: _checksum(member.gpus) for member in self._members if member.proven}

    def hear(self, told: Iterable[Mapping[str, int]], now: Seconds) -> None:
        """For who does not lead: the leader believes only what it has seen."""
        proven = {item for each in told for item in each.items()}
        for member in self._members:
            open_ = member.proof.state is Standing.UNPROVEN and member.status.health is not Health.DOWN
            if open_ and (member.law.name, _checksum(member.gpus)) in proven:
                member.proof = Proof(Standing.PROVEN, "another gateway saw them rise", now)


def _checksum(gpus: Sequence[str]) -> int:
    return crc32(",".join(gpus).encode())
