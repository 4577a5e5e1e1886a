"""Being asked to stop, without being torn out of what is being written."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop:
    """While it is entered, Ctrl-C, SIGTERM and a closed terminal only set `number` (0: not asked) and `count`.

    A signal that the caller of the program had ignored (nohup, a shell's background job) stays ignored.
    """

    def __init__(self) -> None:
        self.number = 0
        self.count = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        for number in _SIGNALS:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.number = self.number or number
        self.count += 1
