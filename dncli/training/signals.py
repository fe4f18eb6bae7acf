"""SIGTERM and Ctrl-C: the first one asks the training to stop after its step, the second one quits at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType

from dndetr.training import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT)
NOTICE = b"\ndndetr: stopping after this step, the run is saved; once more to quit at once\n"


class Stopped(SystemExit):
    """The run was stopped by a signal, and saved. The exit code is the one that a shell expects: 128 + the signal."""

    def __init__(self, number: int):
        super().__init__(128 + number)


class Stop:
    """`with Stop() as stop:` keeps the two signals back. What runs inside looks at them where it can be left."""

    def __init__(self) -> None:
        self.number = 0  # of the signal that came

    def __enter__(self) -> Stop:
        alone = threading.current_thread() is threading.main_thread()  # Python allows handlers there only
        listened = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup, or sh -c 'x &'
        self.before = {number: signal.signal(number, self.ask) for number in listened} if alone else {}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def ask(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for each in self.before:
            signal.signal(each, signal.SIG_DFL)
        if distributed.is_main():
            with contextlib.suppress(OSError):  # who reads it may be gone by the same signal
                os.write(2, NOTICE)  # a console may be in the middle of a line

    def agreed(self) -> int:
        """The signal that any process received, 0 for none. Every process must ask at the same place."""
        return distributed.largest(self.number)
