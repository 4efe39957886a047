"""Ctrl-C between two steps, never within one: what a run saves then is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Within it, a first Ctrl-C only makes the function that it yields say True; a second one interrupts at once.

    SIGTERM counts as Ctrl-C where it does so outside (the command line). In another thread than the main one
    nothing is deferred, since signals do not arrive there.
    """
    asked = False
    if threading.current_thread() is not threading.main_thread():
        yield lambda: asked
        return
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(number, frame)
        asked = True

    for wanted in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(wanted) is signal.default_int_handler:
            before[wanted] = signal.signal(wanted, note)
    try:
        yield lambda: asked
    finally:
        for given, handler in before.items():
            signal.signal(given, handler)
