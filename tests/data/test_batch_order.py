"""What each process reads of a batch: together the batch of one process, whatever their number."""

from __future__ import annotations

import tracemalloc
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flambeau.data import IndexStream
from flambeau.data.batch_order import BatchOrder, Request

sizes = st.integers(1, 300)
batch_sizes = st.integers(1, 70)
world_sizes = st.integers(1, 9)


def orders(size: int, batch_size: int, ranks: int, seed: int = 0, *, drop_last: bool = False) -> list[BatchOrder]:
    stream = IndexStream(size, seed)
    return [
        BatchOrder(stream, batch_size, drop_last=drop_last, endless=True, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]


def whole_batches(size: int, batch_size: int, start: int, number: int) -> list[Request]:
    return list(islice(orders(size, batch_size, 1)[0].requests(start), number))


@given(sizes, batch_sizes, world_sizes, st.integers(0, 40))
def test_shares_make_up_the_batch_of_one_process(size: int, batch_size: int, ranks: int, start: int) -> None:
    """In its order, from any step on, ragged batches and those with fewer samples than processes included."""
    parts = [list(islice(order.requests(start), 12)) for order in orders(size, batch_size, ranks)]
    for whole, *shares in zip(whole_batches(size, batch_size, start, 12), *parts, strict=True):
        assert np.concatenate([share.ids for share in shares]).tolist() == whole.ids.tolist()
        assert {share.portion.global_size for share in shares} == {len(whole.ids)}
        counts = [len(share.ids) for share in shares]
        assert max(counts) - min(counts) <= 1 and counts == sorted(counts, reverse=True)


@given(sizes, batch_sizes, world_sizes)
def test_a_share_without_samples_borrows_the_first_of_the_batch(size: int, batch_size: int, ranks: int) -> None:
    """So each process has a row to call the model with, at every step."""
    parts = [islice(order.requests(0), 8) for order in orders(size, batch_size, ranks)]
    for whole, *shares in zip(whole_batches(size, batch_size, 0, 8), *parts, strict=True):
        for share in shares:
            assert share.rows.tolist() == (share.ids.tolist() or whole.ids[:1].tolist())


@given(sizes, batch_sizes, st.lists(st.tuples(world_sizes, st.integers(1, 9)), min_size=2, max_size=4))
def test_another_number_of_processes_goes_on_where_the_last_stopped(
    size: int, batch_size: int, lives: list[tuple[int, int]]
) -> None:
    """Nothing lost, nothing repeated, whatever the numbers of processes and wherever they stopped."""
    seen: list[int] = []
    step = 0
    for ranks, steps in lives:
        parts = [islice(order.requests(step), steps) for order in orders(size, batch_size, ranks)]
        for shares in zip(*parts, strict=True):
            seen += [index for share in shares for index in share.ids.tolist()]
        step += steps
    assert seen == [index for whole in whole_batches(size, batch_size, 0, step) for index in whole.ids.tolist()]


@given(sizes, batch_sizes, world_sizes)
def test_each_epoch_holds_each_sample_once(size: int, batch_size: int, ranks: int) -> None:
    """Over all processes."""
    parts = orders(size, batch_size, ranks)
    steps = parts[0].steps_per_epoch
    seen = [index for order in parts for share in islice(order.requests(steps), steps) for index in share.ids.tolist()]
    assert sorted(seen) == list(range(size))


@given(st.integers(10, 300), st.integers(1, 10), world_sizes)
def test_a_small_last_batch_is_left_out_by_every_process(size: int, batch_size: int, ranks: int) -> None:
    """The next step is the first of the next epoch, in each of them."""
    for order in orders(size, batch_size, ranks, drop_last=True):
        assert order.steps_per_epoch == size // batch_size
        epochs = [request.epoch for request in islice(order.requests(0), order.steps_per_epoch + 1)]
        assert epochs == [0] * order.steps_per_epoch + [1]
        assert {part.portion.global_size for part in islice(order.requests(0), 2 * order.steps_per_epoch)} == {
            batch_size
        }


@pytest.mark.parametrize(("batch_size", "place"), [(40_000, 0.0), (10**6 + 3, 1.0), (9_999, 0.7)])
def test_ten_thousand_processes_over_ten_thousand_million_samples(batch_size: int, place: float) -> None:
    """Anywhere in an epoch, its ragged end included, the shares make up the batch of one process."""
    size, ranks = 10**10, 10_000
    parts = orders(size, batch_size, ranks)
    step = round(place * (parts[0].steps_per_epoch - 1))
    rows = [order.rows(7, step, step + 1) for order in parts]
    ids = np.concatenate([row[: order.part(step).size] for order, row in zip(parts, rows, strict=True)])
    start = step * batch_size
    assert np.array_equal(ids, IndexStream(size, seed=0).indices(7, start, min(start + batch_size, size)))
    assert len(np.unique(ids)) == len(ids)
    assert [len(row) for row in rows] == [max(order.part(step).size, 1) for order in parts]


def test_the_share_of_one_in_ten_thousand_takes_memory_for_itself_alone() -> None:
    """Not for the batch of a million samples, nor for the 10**10 of the data: under 2 MB, wherever it begins."""
    order = BatchOrder(IndexStream(10**10, seed=0), 10**6, drop_last=False, endless=True, rank=9_999, ranks=10_000)
    next(order.requests(0))
    tracemalloc.start()
    for start in (0, 5_000, 9_999, 10**9):
        for part in islice(order.requests(start), 400):
            assert len(part.ids) == 100
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
