from collections import Counter

import numpy as np
import pytest

from inpaint_dist.chance import mix, mix_range, uniform
from inpaint_dist.data.order import SampleOrder, permutation, steps_for


def test_hashes_are_the_same_one_by_one_and_all_at_once():
    assert [mix(5, 2**63, i) for i in range(100)] == mix_range(100, 5, 2**63).tolist()


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
