"""One thread that does all drawing: the latest request of a kind wins, and turns are taken."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator

import torch

_PATIENCE = 1.0  # seconds
Steps = Iterator[object]


class Worker:
    """Runs requests step by step on a thread of its own.

    A request is an iterator: between two steps of it, it can be dropped. Whatever else is asked
    for waits for the step that runs, so that steps should be short.
    It belongs to a key, such as a client and what it asks for; a newer request of the same key
    takes its place. The first step of a request is always run if nothing newer has come before it
    was its turn, so that something is drawn however often requests come. Keys take turns.

    Steps run without gradients, unless they ask for them.

    Args:
        failed: called on the thread with the key and what a step raised; its request ends. What it
            raises itself is ignored, and after :meth:`stop` it is not called any more.
    """

    def __init__(self, failed: Callable[[Hashable, Exception], None]) -> None:
        self._failed = failed
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, Steps] = {}
        self._running: dict[Hashable, Steps] = {}
        self._turns: deque[Hashable] = deque()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="ginr-fast-viewer", daemon=True)
        self._thread.start()

    def submit(self, key: Hashable, steps: Steps) -> None:
        """Ask for something, in the place of what was asked for before under the same key."""
        with self._changed:
            if self._ended:
                return
            self._waiting[key] = steps
            if key not in self._turns:
                self._turns.append(key)
            self._changed.notify_all()

    def forget(self, belongs: Callable[[Hashable], bool]) -> None:
        """Drop what has been asked for under the keys that ``belongs`` accepts."""
        with self._changed:
            for requests in (self._waiting, self._running):
                for key in [key for key in requests if belongs(key)]:
                    del requests[key]
            self._turns = deque(key for key in self._turns if not belongs(key))
            self._changed.notify_all()

    def idle(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to do; False if that took longer than ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not (self._waiting or self._running), timeout=timeout
            )

    def stop(self) -> None:
        """Drop everything and end the thread.

        It ends after the step that runs. One that takes longer than a second is interrupted, which
        takes until its next line of Python; if that takes long, too, the thread is left to it.
        """
        with self._changed:
            self._ended = True
            self._waiting.clear()
            self._running.clear()
            self._turns.clear()
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                _interrupt(self._thread)
                self._thread.join(_PATIENCE)

    def _run(self) -> None:
        with torch.no_grad(), contextlib.suppress(SystemExit):  # see _interrupt
            while (turn := self._next()) is not None:
                self._step(*turn)

    def _next(self) -> tuple[Hashable, Steps] | None:
        """Whose turn it is, and what to go on with; None in the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._turns or self._ended)
            if self._ended:
                return None
            key = self._turns.popleft()
            newest = self._waiting.pop(key, None)
            if newest is not None:
                self._running[key] = newest
            return key, self._running[key]

    def _step(self, key: Hashable, steps: Steps) -> None:
        more = True
        try:
            next(steps)
        except StopIteration:
            more = False
        except Exception as error:
            more = False
            if not self._ended:
                with contextlib.suppress(Exception):  # who would hear of it may be gone
                    self._failed(key, error)
        with self._changed:
            current = self._running.get(key) is steps
            if current and more:
                if key not in self._turns:
                    self._turns.append(key)
            elif current:
                del self._running[key]
            self._changed.notify_all()


def _interrupt(thread: threading.Thread) -> None:
    """End a thread as ``sys.exit`` in it would; a process that ends while one computes aborts."""
    assert thread.ident is not None
    number, reason = ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(number, reason)
