"""Wakes a thread that polls."""

from __future__ import annotations

import contextlib
import os


class Bell:
    """What an eventfd is, on systems that have none, too."""

    def __init__(self) -> None:
        self._heard, self._rung = os.pipe()
        os.set_blocking(self._heard, False)
        os.set_blocking(self._rung, False)

    def fileno(self) -> int:
        """Readable once it rang."""
        return self._heard

    def ring(self) -> None:
        """Wake it; ringing again before it heard does nothing more."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._rung, b"!")

    def hear(self) -> None:
        """Be quiet until it rings again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._heard, 4096)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._heard)
        os.close(self._rung)
