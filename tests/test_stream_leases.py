"""A buffer is not written again while a result, its image, or any view of it is held."""

import gc
import threading

import numpy as np
import pytest
from fault_injection import within

from photonstep.runtime.lease import BufferPool, Lease


def lent(pool):
    """A buffer with a lease on it and no other holder, as after a delivery."""
    buffer = pool.lend()
    buffer.fit((8, 8), np.dtype(np.uint16), preview=True)
    lease = Lease(pool, buffer)
    pool.let_go(buffer)
    return buffer, lease


def test_release_gives_the_buffer_back_once():
    pool = BufferPool(2)
    _, lease = lent(pool)
    assert pool.free == 1
    lease.release()
    lease.release()
    assert pool.free == 2


def test_a_forgotten_lease_is_collected():
    pool = BufferPool(1)
    _, lease = lent(pool)
    assert pool.lend() is None
    del lease
    gc.collect()
    assert pool.free == 1


@pytest.mark.parametrize("what", ["image", "preview"])
def test_a_view_keeps_the_buffer(what):
    pool = BufferPool(1)
    buffer, lease = lent(pool)
    view = np.asarray(memoryview(getattr(lease, what)[2:, ::2].T))[1:]
    assert np.shares_memory(view, getattr(buffer, what))
    del lease
    gc.collect()
    assert pool.free == 0
    del view
    gc.collect()
    assert pool.free == 1


def test_every_holder_counts():
    pool = BufferPool(1)
    buffer, first = lent(pool)
    second = Lease(pool, buffer)
    first.release()
    assert pool.free == 0
    second.release()
    assert pool.free == 1


def test_images_are_read_only():
    _, lease = lent(BufferPool(1))
    for array in (lease.image, lease.preview):
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


@within(10)
def test_garbage_may_be_collected_while_the_lock_is_held():
    """Giving back takes no lock: the collector may run in a thread that holds it."""
    pool, lock = BufferPool(1), threading.Lock()
    _, lease = lent(pool)
    with lock:
        del lease
        gc.collect()
        assert pool.free == 1


def test_a_pool_gets_as_small_as_it_was():
    pool = BufferPool(1)
    _, first = lent(pool)
    for _ in range(3):  # a consumer that comes and goes while every buffer is held
        pool.grow(1)
        _, second = lent(pool)
        pool.shrink(1)
        assert pool.lend() is None
        second.release()
        pool.sweep()
        assert (pool.count, pool.free) == (1, 0)
    first.release()
    assert pool.free == 1
