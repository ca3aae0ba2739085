"""Groups cover what was ever named, without overlap, and the newest word counts."""

from hypothesis import given
from hypothesis import strategies as st

from gpu_agent.groups import Groups, regrouped

GPUS = st.sampled_from([f"GPU-{i}" for i in range(6)])
REQUESTS = st.lists(st.tuples(st.frozensets(GPUS), st.lists(st.frozensets(GPUS, min_size=1), max_size=2)))


@given(REQUESTS)
def test_every_gpu_is_in_one_group(requests: list[tuple[frozenset[str], list[frozenset[str]]]]) -> None:
    groups, named = Groups(), frozenset[str]()
    for names, together in requests:
        overlap = len(together) == 2 and together[0] & together[1]
        wanted = tuple(tuple(sorted(group)) for group in (together[:1] if overlap else together))
        groups, named = regrouped(groups, names, wanted), named | names
        members = [uuid for group in groups.sets for uuid in group]
        assert len(members) == len(set(members))
        assert set(members) == named
        for group in wanted:
            assert frozenset(group) & names in groups.sets | {frozenset()}


def test_the_same_request_again_changes_nothing() -> None:
    once = regrouped(Groups(), frozenset({"a", "b", "c"}), (("a", "b"),))
    assert once.sets == {frozenset({"a", "b"}), frozenset({"c"})}
    assert regrouped(once, frozenset({"a", "b", "c"}), (("a", "b"),)) is once
    assert regrouped(once, frozenset(), ()) is once
