"""Ctrl-C and SIGTERM: heard, not lost, and put back to whoever was in charge before."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def handling(number: signal.Signals, handler: Any) -> Iterator[None]:
    """`handler` in charge of a signal, and afterwards whoever was before. Only the main thread can; others pass."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def as_ctrl_c(number: int, frame: Any) -> None:
    """A handler of SIGTERM: the process is ended as by Ctrl-C."""
    # Who starts us in the background, as shells do, may have had Ctrl-C ignored; SIGTERM is meant for us all the same.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        raise KeyboardInterrupt
    os.kill(os.getpid(), signal.SIGINT)


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """Ctrl-C takes effect at the end of the block, and a second one at once: Ray, while it comes up, forgets it."""
    came: list[int] = []

    def keep(number: int, frame: Any) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with handling(signal.SIGINT, keep):
        yield
    if came:
        raise KeyboardInterrupt
