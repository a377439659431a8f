"""One event file of TensorBoard. Unlike in the writers of PyTorch and TensorBoard, no thread writes it.

A sweep writes files of thousands of trials, and a thread would report a full disk only at a later call.
"""

import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

# Protobuf creates the classes of this module at import, so type checkers do not find them.
_EVENT: Any = event_pb2
_NUMBERS = itertools.count()


class EventFile:
    """A new event file in `folder`, which is created. Each method raises `OSError` if the file cannot be written.

    Readers see each summary as soon as it has been added. The file is open only meanwhile, so there can be any number
    of these.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files of a run in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        self._path = folder / name
        self._append(_EVENT.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, summary: Any, step: int = 0, when: float | None = None) -> None:
        """Add a summary, a protocol buffer. `when`: in seconds since 1970; None: now."""
        self._append(_EVENT.Event(wall_time=time.time() if when is None else when, step=step, summary=summary))

    def _append(self, event: Any) -> None:
        with open(self._path, "ab") as file:
            RecordWriter(file).write(event.SerializeToString())
