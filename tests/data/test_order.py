"""Which image comes where: proportions, epochs, independence of sources, ranks, temperature, balance by task."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perception.config import validate_config
from perception.data.sampler import MixConfig, MixtureSampler, compute_sampling_shares
from perception.types import ConfigError


def numbers(*weights: float, seed: int = 0, block: int = 1) -> MixtureSampler:
    names = [f"s{i}" for i in range(len(weights))]
    return MixtureSampler(names, [7 + i for i in range(len(weights))], weights, seed, block)


@given(st.lists(st.sampled_from([0.001, 0.3, 0.5, 1.0, 2.0, 7.7, 1000.0]), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_every_stretch_holds_the_sources_in_proportion(weights, seed):
    order = numbers(*weights, seed=seed)
    turns = [order.locate_turn(p) for p in range(150)]
    for s, weight in enumerate(weights):
        mine = [k for source, k in turns if source == s]
        assert mine == list(range(len(mine)))  # no turn is lost or comes twice
        share = weight / sum(weights)
        counts = np.cumsum([source == s for source, _ in turns])
        assert np.abs(counts - share * np.arange(1, 151)).max() <= len(weights)


def test_far_positions_are_found_without_the_way_there():
    order = numbers(1.0, 0.37, 3.0)
    far = [order.locate_turn(p) for p in range(10**9, 10**9 + 200)]
    for s in range(3):
        mine = [k for source, k in far if source == s]
        assert mine == list(range(mine[0], mine[0] + len(mine)))


def test_every_image_comes_once_before_any_comes_again():
    order = numbers(1.0, 2.0)
    seen = collections.defaultdict(list)
    for p in range(300):
        s, index = order.locate_image(p)
        seen[s].append(index)
    for s, count in ((0, 7), (1, 8)):
        epochs = [seen[s][i : i + count] for i in range(0, len(seen[s]) - count, count)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_a_source_more_changes_no_sample_of_the_others():
    def of(order: MixtureSampler, source: int) -> list[int]:
        return [index for p in range(400) if (item := order.locate_image(p))[0] == source for index in item[1:]]

    few, more = numbers(1.0, 2.0), numbers(1.0, 2.0, 5.0)
    for source in (0, 1):
        shorter, longer = sorted((of(few, source), of(more, source)), key=len)
        assert shorter == longer[: len(shorter)]


@pytest.mark.parametrize(("batch_size", "world"), [(8, 1), (8, 2), (4, 4), (7, 3)])
def test_ranks_share_the_positions_of_a_step(batch_size, world):
    order = numbers(1.0)
    parts = [list(order.batch_positions(5, batch_size, rank, world)) for rank in range(world)]
    assert sorted(itertools.chain(*parts)) == list(range(5 * batch_size, 6 * batch_size))


def test_no_rank_is_left_with_one_source():
    order = numbers(1.0, 1.0)
    for rank in range(2):
        mine = [order.locate_turn(p)[0] for step in range(200) for p in order.batch_positions(step, 4, rank, 2)]
        assert 0.4 < np.mean(mine) < 0.6


def test_a_position_belongs_to_one_rank_whatever_the_step():
    order = numbers(1.0)
    assert order.batch_positions(3, 4, 1, 2) == order.batch_positions(3, 4, 1, 2)
    assert [p - 8 for p in order.batch_positions(2, 4, 0, 2)] != [p - 12 for p in order.batch_positions(3, 4, 0, 2)]


def test_batches_by_source_hold_one_source_and_every_image_in_turn():
    order = numbers(1.0, 3.0, block=4)
    batches = [[order.locate_image(p) for p in order.batch_positions(step, 4)] for step in range(40)]
    assert all(len({s for s, _ in batch}) == 1 for batch in batches)
    steps = collections.Counter(batch[0][0] for batch in batches)
    assert steps == {0: 10, 1: 30}
    seen = [index for batch in batches for s, index in batch if s == 0]
    assert sorted(seen[:7]) == list(range(7))
    with_ranks = [
        {order.locate_turn(p)[0] for r in range(2) for p in order.batch_positions(step, 4, r, 2)} for step in range(40)
    ]
    assert all(len(sources) == 1 for sources in with_ranks)


def mix(**options) -> MixConfig:
    return validate_config(MixConfig, options)


def test_temperature_goes_from_size_to_equal():
    sizes, weights = [10, 1000], [1.0, 1.0]
    assert compute_sampling_shares(sizes, weights, [{}, {}], mix()) == [0.5, 0.5]
    assert compute_sampling_shares(sizes, weights, [{}, {}], mix(temperature=1)) == pytest.approx(
        [10 / 1010, 1000 / 1010]
    )
    assert compute_sampling_shares(sizes, weights, [{}, {}], mix(temperature=2)) == pytest.approx([1 / 11, 10 / 11])
    assert compute_sampling_shares(sizes, weights, [{}, {}], mix(temperature=1e9)) == pytest.approx([0.5, 0.5])
    assert compute_sampling_shares(sizes, [101.0, 1.0], [{}, {}], mix(temperature=1)) == pytest.approx(
        [0.5025, 0.4975], abs=1e-3
    )
    with pytest.raises(ConfigError, match="temperature"):
        mix(temperature=0)


def covered(parts: list[float], coverage: list[dict[str, float]], task: str) -> float:
    return sum(part * source.get(task, 0) for part, source in zip(parts, coverage, strict=True))


def test_balance_by_task_evens_what_the_sources_label():
    coverage = [{"detection": 1.0}, {"detection": 1.0}, {"depth": 1.0}, {"segmentation": 1.0, "depth": 0.1}]
    parts = compute_sampling_shares([100] * 4, [5.0, 1.0, 1.0, 1.0], coverage, mix(even="tasks"))
    assert sum(parts) == pytest.approx(1)
    assert parts[0] / parts[1] == pytest.approx(5)  # of equal labels: their weights decide
    before = compute_sampling_shares([100] * 4, [5.0, 1.0, 1.0, 1.0], coverage, mix())
    for task, least in (("detection", 0.3), ("depth", 0.3), ("segmentation", 0.3)):
        assert covered(parts, coverage, task) > least
    assert covered(before, coverage, "depth") < 0.14
    assert (np.array(parts) >= 0.25 * np.array(before) - 1e-9).all()
    # images that only label what others label too are not given up
    assert compute_sampling_shares([1, 1], [1.0, 1.0], [{"a": 1.0}, {"a": 1.0, "b": 1.0}], mix(even="tasks"))[0] >= 0.12


@given(
    st.lists(
        st.tuples(st.floats(0.01, 10), st.dictionaries(st.sampled_from("abc"), st.floats(0.01, 1), max_size=3)),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None)
def test_balance_by_task_never_starves_and_never_worsens_the_fair_sum(sources):
    weights, coverage = [w for w, _ in sources], [c for _, c in sources]
    before = compute_sampling_shares([1] * len(sources), weights, coverage, mix())
    after = compute_sampling_shares([1] * len(sources), weights, coverage, mix(even="tasks"))
    assert sum(after) == pytest.approx(1)
    assert all(part >= 0 for part in after)
    tasks = {task for source in coverage for task in source}
    fair = lambda parts: sum(np.log(covered(parts, coverage, task)) for task in tasks)  # noqa: E731
    assert fair(after) >= fair(before) - 1e-9
    for part, kept, source in zip(before, after, coverage, strict=True):
        assert source or kept == pytest.approx(part)  # one without labels keeps its share


def test_tiny_shares_still_come_up():
    order = MixtureSampler(["a", "b"], [5, 5], [1.0, 1e-9])
    assert order.sampling_shares[1] > 0
    assert order.locate_turn(0)[0] in (0, 1)
