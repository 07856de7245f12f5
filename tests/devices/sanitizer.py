"""torch's own race detector as a second opinion: pure Python, runs without a GPU."""

from __future__ import annotations

from collections.abc import Set

from torch.cuda._sanitizer import EventHandler

from dali.devices import Operation, RaceDetector


class SanitizerFeed(RaceDetector):
    """Give it to a SimDevice as `races`: vector clocks that feed the same calls to torch's CUDA sanitizer.

    `errors` collects what the sanitizer reports.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []
        self._handler = EventHandler()

    def launched(self, operation: Operation, reads: Set[int], writes: Set[int]) -> None:
        stream, event = operation.stream.number + 1, operation.number  # 0 is CUDA's default stream
        for earlier in operation.waits:
            self._handler._handle_event_wait(earlier.number, stream)
        names = {key: [operation.label] for key in reads | writes}
        launch = self._handler._handle_kernel_launch
        self.errors += launch(stream, reads - writes, writes, set(), operation.label, names)
        self._handler._handle_event_creation(event)
        self._handler._handle_event_record(event, stream)
        super().launched(operation, reads, writes)

    def host_waited(self, operation: Operation) -> None:
        self._handler._handle_event_synchronization(operation.number)
        super().host_waited(operation)
