"""Pure: which GPUs of a node are lowered together: those of one tensor-parallel instance; others alone."""

from dataclasses import dataclass

Wanted = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Groups:
    """`sets` do not overlap. `asked` is the request they were last made from."""

    sets: frozenset[frozenset[str]] = frozenset()
    asked: tuple[frozenset[str], Wanted] = (frozenset(), ())


def regrouped(known: Groups, named: frozenset[str], wanted: Wanted) -> Groups:
    """As a request says that names these GPUs; others stay as they were. `known` itself if nothing is new."""
    if not named or (named, wanted) == known.asked:
        return known
    rest = {group - named for group in known.sets}
    together = {frozenset(group) & named for group in wanted}
    alone = {frozenset({uuid}) for uuid in named.difference(*together)}
    return Groups(frozenset((rest | together | alone) - {frozenset()}), (named, wanted))
