"""How much work waits at each encoder: what it reported, and what was sent there since.

Calls to encoders end with their tickets, within milliseconds, while the work goes on; only the replica knows when it is
done. What a call will cost shows in its header, which no router reads: it is charged with the mean of that replica.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.routing.reports import EncoderReport


class EncoderBacklogs:
    """The account of one router."""

    def __init__(self) -> None:
        self._reports: dict[str, EncoderReport] = {}
        self._num_sent: dict[str, int] = {}

    def sent(self, name: str, num_items: int) -> None:
        """So many items went to this replica."""
        self._num_sent[name] = self._num_sent.get(name, 0) + num_items

    def report(self, reports: Mapping[str, EncoderReport]) -> None:
        """What the replicas said last, again and again, of all that there are; those that are gone are forgotten."""
        for name, report in reports.items():
            if report != self._reports.get(name):
                # What was sent before is in it, but for what was on its way.
                self._num_sent[name] = 0
        self._reports = dict(reports)
        self._num_sent = {name: number for name, number in self._num_sent.items() if name in reports}

    def work(self, name: str) -> float:
        """Patches that wait or are computed there, with attention's quadratic term."""
        report = self._reports.get(name, EncoderReport())
        return report.pending_work + self._num_sent.get(name, 0) * report.work_per_item
