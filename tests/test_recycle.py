"""Buffers are used again, but never while somebody can still see them."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vrl3data.recycle import KEPT, LEAST, Recycled

SIZE = 4096
ROWS = LEAST // SIZE


def address(values: np.ndarray) -> int:
    return values.ctypes.data


def test_what_nobody_refers_to_is_handed_out_again() -> None:
    pool = Recycled()
    place = address(pool.empty(ROWS, SIZE))
    assert [address(pool.empty(ROWS, SIZE)) for _ in range(5)] == [place] * 5


def test_a_view_of_a_view_keeps_the_buffer() -> None:
    pool = Recycled()
    whole = pool.empty(ROWS, SIZE)
    whole[:] = 7
    part = whole.reshape(ROWS, 2, -1)[1:, 0].view(np.int32)
    del whole
    for _ in range(3 * KEPT):
        pool.empty(ROWS, SIZE)[:] = 1
    assert (part.view(np.uint8) == 7).all()


def test_arrays_that_are_kept_stay_apart() -> None:
    pool = Recycled()
    kept = []
    for number in range(3 * KEPT):
        kept.append(pool.empty(ROWS, SIZE))
        kept[-1][:] = number
    assert all((values == number).all() for number, values in enumerate(kept))
    assert len(pool._buffers) <= KEPT


def test_a_tensor_keeps_the_buffer() -> None:
    import torch

    pool = Recycled()
    tensor = torch.from_numpy(pool.empty(ROWS, SIZE)).fill_(3)[5:]
    for _ in range(2 * KEPT):
        pool.empty(ROWS, SIZE)[:] = 1
    assert bool((tensor == 3).all())


def test_small_arrays_and_other_sizes() -> None:
    pool = Recycled()
    assert pool.empty(2, 3).shape == (2, 3)
    assert pool._buffers == []
    for rows in range(ROWS, ROWS + 3 * KEPT):
        assert pool.empty(rows, SIZE).shape == (rows, SIZE)
    assert len(pool._buffers) == KEPT


def test_threads_get_buffers_of_their_own() -> None:
    pool = Recycled()

    def work(number: int) -> bool:
        ok = True
        for _ in range(30):
            values = pool.empty(ROWS, SIZE)
            values[:] = number
            ok = ok and bool((values == number).all())
        return ok

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(4)))


def test_a_copy_for_another_process_is_empty() -> None:
    pool = Recycled()
    pool.empty(ROWS, SIZE)
    assert pickle.loads(pickle.dumps(pool))._buffers == []
