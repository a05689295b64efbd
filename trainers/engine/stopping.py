"""Stopping at a signal: after the step under way, and after the same step in every process."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import torch

from dse_monitor.trainers import distributed
from dse_monitor.trainers.engine.devices import Later


class StopRequests:
    """Signals that ask a run to stop.

    Args:
        device: where the processes' requests are compared.
        processes: how many there are.

    Attributes:
        agreed: number of the signal that all processes stop for; 0 to go on.
    """

    def __init__(self, device: torch.device, processes: int) -> None:
        self.agreed = 0
        self._device, self._processes = device, processes
        self._received = 0  # the signal that asked this process
        self._agreement: Later | None = None  # what the processes agreed on after the step before

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """SIGTERM and the first Ctrl-C are requests in here; a second Ctrl-C interrupts as usual."""

        def stop(number: int, frame: FrameType | None) -> None:
            if self._received and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._received = self._received or number

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agree(self) -> None:
        """Compare requests after a step; several processes stop one step after the first was asked."""
        if self._processes == 1:
            self.agreed = self._received
            return
        if self._agreement is not None:
            self.agreed = int(self._agreement.value())
        received = torch.full((), self._received, device=self._device)
        self._agreement = Later(distributed.max_over_processes(received))
