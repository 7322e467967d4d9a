"""Prefetching: a background thread computes the next elements while the reader uses the last one."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

Element = Any


class Prefetcher:
    """An element function (pass, k) -> element that prefetches up to n elements for a sequential reader.

    The background thread ends as soon as n elements are ready, and the next read starts another one. It never
    waits, so that no thread outlives a pass. Starting a thread costs 50 us, little where a thread pays.
    """

    def __init__(self, element: Callable[[int, int], Element], length: int, n: int) -> None:
        self._element, self._length, self._n = element, length, n
        self._reader = threading.Lock()  # one reader at a time
        self._changed = threading.Condition()
        self._ready: deque[tuple[Element, BaseException | None]] = deque()
        self._position = (-1, 0)  # pass and index of the first ready element
        self._generation = 0  # incremented when the reader jumps; results of older threads are dropped
        self._working = False

    def __call__(self, e: int, k: int) -> Element:
        """Return element k of pass e, and start to compute the next ones."""
        with self._reader, self._changed:
            if (e, k) != self._position:
                self._ready.clear()
                self._position, self._generation, self._working = (e, k), self._generation + 1, False
            self._start()
            while not self._ready:
                self._changed.wait()
            element, error = self._ready.popleft()
            self._position = (e, k + 1)
            self._start()
        if error is not None:
            raise error
        return element

    def _next(self) -> int:
        return self._position[1] + len(self._ready)

    def _start(self) -> None:
        if not self._working and len(self._ready) < self._n and self._next() < self._length:
            self._working = True
            worker = threading.Thread(target=self._work, args=(self._generation,), name="treepie-prefetch")
            worker.daemon = True  # an element that never comes must not keep a program from ending
            worker.start()

    def _work(self, generation: int) -> None:
        while True:
            with self._changed:
                if generation != self._generation:
                    return
                if len(self._ready) >= self._n or self._next() >= self._length:
                    self._working = False
                    return
                e, k = self._position[0], self._next()
            element, failure = None, None
            try:
                element = self._element(e, k)
            except BaseException as error:  # raised again by the reader
                failure = error
            with self._changed:
                if generation == self._generation:
                    self._ready.append((element, failure))
                    self._changed.notify_all()
