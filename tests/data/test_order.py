from collections import Counter

import numpy as np
import pytest

from inpaint_dist.chance import mix, mix_range, uniform
from inpaint_dist.config import TrainConfig, shaping
from inpaint_dist.data import order as orders
from inpaint_dist.data.loader import DataConfig
from inpaint_dist.data.order import SampleOrder, WindowedOrder, order_of, permutation, steps_for


def test_hashes_are_the_same_one_by_one_and_all_at_once():
    assert [mix(5, 2**63, i) for i in range(100)] == mix_range(100, 5, 2**63).tolist()
    assert mix(3, 4, state=mix(1, 2)) == mix(1, 2, 3, 4)


def test_the_order_is_the_same_on_every_machine_for_ever():
    assert permutation(10, 0, 0).tolist() == [4, 8, 0, 1, 7, 6, 2, 5, 3, 9]
    assert permutation(10, 0, 1).tolist() == [9, 7, 0, 1, 6, 3, 4, 5, 2, 8]
    assert mix(1, 2, 3) == 2783170246834757110 or mix(1, 2, 3) == mix_range(4, 1, 2)[3]


@pytest.mark.parametrize("samples", [1, 2, 7, 1000])
def test_an_epoch_is_every_sample_once(samples: int):
    assert sorted(permutation(samples, 3, 5).tolist()) == list(range(samples))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_neighbours_are_separated_as_a_full_shuffle_separates_them():
    order = permutation(10_000, 0, 0)
    gaps = np.abs(np.diff(np.argsort(order)))
    assert gaps.mean() == pytest.approx(10_000 / 3, rel=0.03)


@pytest.mark.parametrize("batch", [1, 3, 8, 25])
def test_batches_straddle_epochs_and_each_sample_is_read_once_an_epoch(batch: int):
    order = SampleOrder(samples=10, seed=1)
    draws = [draw for step in range(steps_for(10, 4, batch)) for draw in order.draws(step * batch, (step + 1) * batch)]
    for epoch in range(4):
        assert sorted(d.index for d in draws if d.epoch == epoch) == list(range(10))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_the_global_batch_is_the_same_on_any_number_of_ranks(world: int):
    order, total = SampleOrder(samples=29, seed=2), 12
    for step in (0, 2, 7):
        whole = list(order.draws(step * total, (step + 1) * total))
        share = total // world
        parts = [order.draws(step * total + r * share, step * total + (r + 1) * share) for r in range(world)]
        assert [draw for part in parts for draw in part] == whole


@pytest.mark.parametrize(
    ("samples", "epochs", "batch", "steps"), [(84, 30, 8, 315), (3, 2, 8, 1), (8, 1, 8, 1), (9, 1, 8, 2)]
)
def test_epochs_are_rounded_up_to_whole_steps(samples: int, epochs: int, batch: int, steps: int):
    assert steps_for(samples, epochs, batch) == steps


def test_mirroring_bits_are_fair():
    bits = Counter(mix(0, epoch, index, 1) & 1 for epoch in range(20) for index in range(500))
    assert bits[1] == pytest.approx(5000, abs=200)


def test_a_rows_random_numbers_are_those_of_its_place_whoever_draws_it():
    whole = uniform(8, 3, 7, 1, start=0)
    assert np.array_equal(whole[5:], uniform(3, 3, 7, 1, start=5))
    assert whole.dtype == np.float32 and whole.min() >= 0 and whole.max() < 1
    many = uniform(20_000, 2, 0, start=10**12)
    assert many.mean(0) == pytest.approx(0.5, abs=0.01) and many.std(0) == pytest.approx(12**-0.5, abs=0.01)
    assert not np.array_equal(whole, uniform(8, 3, 7, 2, start=0))


# -------------------------------------------------------------------- shuffled by windows

PRIMES = (7, 2, 1, 13, 5, 3, 11, 1, 17)


def epochs_of(order: SampleOrder | WindowedOrder, count: int) -> list[list[int]]:
    drawn = list(order.draws(0, count * order.samples))
    assert [draw.epoch for draw in drawn] == [epoch for epoch in range(count) for _ in range(order.samples)]
    return [[draw.index for draw in drawn[e * order.samples : (e + 1) * order.samples]] for e in range(count)]


@pytest.mark.parametrize("window", [1, 2, 3, 4, 8, 9, 50])
def test_by_windows_too_an_epoch_is_every_sample_once_in_an_order_of_its_own(window: int):
    read = epochs_of(order_of(PRIMES, 3, window), 5)
    assert all(sorted(epoch) == list(range(sum(PRIMES))) for epoch in read)
    assert len({tuple(epoch) for epoch in read}) == 5


@pytest.mark.parametrize("window", [1, 3, 4])
def test_no_more_shards_are_open_at_a_time_than_a_window_has(window: int):
    shard_of = np.repeat(np.arange(len(PRIMES)), PRIMES).tolist()
    most = 0
    for epoch in epochs_of(WindowedOrder(PRIMES, 0, window), 4):
        left, begun = dict(enumerate(PRIMES)), set[int]()
        for shard in (shard_of[index] for index in epoch):
            begun.add(shard)
            most = max(most, len(begun))
            left[shard] -= 1
            if not left[shard]:
                begun.remove(shard)
    assert most == window


@pytest.mark.parametrize("window", [1, 2, 5])
def test_by_windows_too_any_stretch_is_what_the_whole_would_have_given(window: int):
    whole = list(order_of(PRIMES, 1, window).draws(0, 260))
    for start in range(0, 190, 7):
        for length in (1, 8, 70):
            assert list(order_of(PRIMES, 1, window).draws(start, start + length)) == whole[start : start + length]


def test_shards_without_samples_change_nothing():
    sizes = (3, 0, 4, 0, 0, 5)
    assert list(order_of(sizes, 0, 2).draws(0, 50)) == list(order_of((3, 4, 5), 0, 2).draws(0, 50))


def test_a_small_set_is_shuffled_whole_and_a_large_one_by_windows(monkeypatch: pytest.MonkeyPatch):
    assert order_of(PRIMES, 7, None) == SampleOrder(sum(PRIMES), 7)
    assert order_of(PRIMES, 7, 9) == SampleOrder(sum(PRIMES), 7)
    large = order_of([1000] * 4195, 0, None)
    assert isinstance(large, WindowedOrder) and large.window == orders.WINDOW == 64
    assert isinstance(order_of([1000] * 4194, 0, None), SampleOrder)
    monkeypatch.setattr(orders, "SHUFFLED_WHOLE", 10)
    assert isinstance(order_of([1] * 11, 0, None), SampleOrder)  # no more shards than a window has


def test_an_order_by_windows_is_the_same_on_every_machine_for_ever():
    assert [draw.index for draw in order_of((3, 2, 4), 0, 2).draws(0, 9)] == [6, 1, 5, 2, 0, 7, 8, 4, 3]


def test_how_far_windows_separate_what_lies_together():
    """200 shards of 100: by windows of K, neighbours of a shard end up K/200 as far apart as in a full shuffle."""
    sizes, count = [100] * 200, 20_000
    shard = np.repeat(np.arange(200), 100)
    found = {}
    for window in (200, 64, 16, 1):
        order = np.array([draw.index for draw in order_of(sizes, 0, window).draws(0, count)])
        gaps = np.abs(np.diff(np.argsort(order)))[shard[1:] == shard[:-1]]
        still = np.mean(np.abs(np.diff(order)) == 1)
        same = np.mean(shard[order[1:]] == shard[order[:-1]])
        found[window] = (round(gaps.mean() / (count / 3), 3), round(100 * still, 3), round(100 * same, 2))
    assert found == {
        200: (0.999, 0.0, 0.5),
        64: (0.308, 0.065, 1.99),
        16: (0.078, 0.185, 6.28),
        1: (0.005, 2.11, 99.0),
    }  # mean distance over a full shuffle's, % of neighbours that stay neighbours, % of draws after one of their shard


def test_the_window_shapes_a_run_and_a_bad_samples_limit_does_not():
    plain = shaping(TrainConfig())
    assert shaping(TrainConfig(data=DataConfig(max_bad_samples=5))) == plain
    windowed = shaping(TrainConfig(data=DataConfig(shuffle_window=8)))
    assert {key for key in windowed if windowed[key] != plain[key]} == {"data.shuffle_window"}
    assert plain["data.shuffle_window"] is None  # as in runs of before there was one
