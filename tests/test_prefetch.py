"""Prefetching: the same elements in the same order, made meanwhile, and no thread left behind."""

import threading
import time
import traceback

import numpy as np
import pytest

import treepie as tp
from treepie import Data

KEY = tp.rng.key(3)


def of(n):
    return Data.of_fn(n, lambda i: i)


def workers():
    return [t for t in threading.enumerate() if t.name == "treepie-prefetch"]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    deadline = time.monotonic() + 5
    while workers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert workers() == []


def slow(i):
    time.sleep(0.002)
    return i


PIPELINES = [
    (of(5).prefetch(), [0, 1, 2, 3, 4]),
    (of(5).map(slow).prefetch(1), [0, 1, 2, 3, 4]),
    (of(5).prefetch(9).map(lambda i: i * i), [0, 1, 4, 9, 16]),
    (of(9).map(slow).prefetch(2).take(3), [0, 1, 2]),
    (of(5).prefetch(2).batch(2).prefetch(2), [[0, 1], [2, 3], [4]]),
    (of(0).prefetch(2), []),
]


@pytest.mark.parametrize(("data", "want"), PIPELINES)
def test_the_same_elements_in_the_same_order(data, want):
    assert len(data) == len(want)
    assert data.to_list() == want
    assert data.to_list() == []
    data.reset()
    assert data.to_list() == want


def test_each_pass_is_shuffled_anew():
    plain, ahead = of(50).shuffle(KEY), of(50).shuffle(KEY).prefetch(3)
    for _ in range(3):
        assert ahead.to_list() == plain.to_list()
        ahead.reset()
        plain.reset()


def test_the_next_element_is_made_while_the_last_is_in_use():
    begun = [threading.Event() for _ in range(10)]
    data = Data.of_fn(10, lambda i: begun[i].set() or i).prefetch(2)
    for i in data:
        assert all(e.wait(5) for e in begun[i + 1 : i + 3])
        assert not any(e.is_set() for e in begun[i + 3 + 1 :])  # and not more than was asked for


def test_a_loop_that_is_left_goes_on_where_it_stopped():
    made = []
    data = Data.of_fn(10, lambda i: made.append(i) or i).prefetch(3)
    for i in data:
        if i == 2:
            break
    assert data.position == 3
    assert next(iter(data)) == 3
    data.reset()
    assert data.to_list() == list(range(10))


def test_an_exception_comes_where_its_element_would_have():
    def fails_at_3(i):
        if i == 3:
            raise KeyError("three")
        return i

    data, seen = of(6).map(fails_at_3).prefetch(2), []
    with pytest.raises(KeyError, match="three") as caught:
        for i in data:
            seen.append(i)
    assert seen == [0, 1, 2]
    assert "fails_at_3" in "".join(traceback.format_tb(caught.tb))
    assert data.to_list() == [4, 5]


def test_reset_in_the_middle_of_a_slow_element():
    release = threading.Event()
    data = Data.of_fn(5, lambda i: int(release.wait(5)) if i == 1 else i).prefetch(1)
    assert next(iter(data)) == 0
    data.reset()
    release.set()
    assert data.to_list() == [0, 1, 2, 3, 4]


def test_an_element_of_a_pass_that_was_left_is_dropped():
    """It is ready when the reader of the next pass waits for the first one."""
    begun, release, calls = threading.Event(), threading.Event(), []

    def element(i):
        calls.append(i)
        if i == 1 and not release.is_set():
            begun.set()
            release.wait(5)
        elif len(calls) == 3:  # the first of the next pass
            release.set()
            time.sleep(0.1)
        return i

    data = Data.of_fn(4, element).prefetch(1)
    assert next(iter(data)) == 0
    assert begun.wait(5)
    data.reset()
    assert data.to_list() == [0, 1, 2, 3]


def test_training_on_prefetched_batches_has_the_same_bits():
    x, y = np.random.default_rng(0).normal(size=(2, 64, 4)).astype("f4")
    trainer = tp.Trainer(tp.layer.linear(4, 4), tp.optim.adam(0.01))
    made = []
    for n in (0, 2):
        data = tp.Data.prepare((x, y), 16, shuffle=KEY)
        data = data.prefetch(n) if n else data
        st = trainer.fit(trainer.init(KEY), data, loss=tp.loss.mse, epochs=3)
        made.append(st.vars.params["weight"].numpy())
    np.testing.assert_array_equal(*made)
