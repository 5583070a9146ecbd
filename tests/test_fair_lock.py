"""First come, first served, and nobody left behind."""

import threading

import pytest
from fault_injection import within

from photonstep.runtime.fair_lock import FairLock


@within(10)
def test_threads_get_their_turn_in_the_order_in_which_they_came():
    lock, served = FairLock(), []

    def queue_up(number):
        with lock:
            served.append(number)

    lock.acquire()
    threads = []
    for number in range(8):
        threads.append(threading.Thread(target=queue_up, args=(number,)))
        threads[-1].start()
        while len(lock._queue) <= number:
            pass
    lock.release()
    for thread in threads:
        thread.join()
    assert served == list(range(8))


@within(10)
def test_its_holder_cannot_take_it_again_before_who_waits():
    """What `threading.Lock` allows, and what starves the second of two busy streams."""
    lock, served = FairLock(), []

    def once():
        with lock:
            served.append("other")

    lock.acquire()
    other = threading.Thread(target=once)
    other.start()
    while not lock._queue:
        pass
    lock.release()
    with lock:
        served.append("first again")
    other.join()
    assert served == ["other", "first again"]


@within(10)
def test_the_holder_may_take_it_twice():
    lock = FairLock()
    with lock, lock:
        taken = []
        thread = threading.Thread(target=lambda: taken.append(lock.acquire(blocking=False)))
        thread.start()
        thread.join()
        assert taken == [False]
    assert lock.acquire(blocking=False)
    lock.release()


def test_only_its_holder_releases_it():
    with pytest.raises(RuntimeError, match="does not hold it"):
        FairLock().release()
