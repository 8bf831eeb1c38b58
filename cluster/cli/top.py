"""`triptych top`: a live view of a running service: stages, replicas, queues, rates and latencies."""

from __future__ import annotations

import argparse
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from cluster.cli.ask import DEFAULT_URL

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_LIVE_INTERVAL_S = 2.0
# Unless told otherwise, Ray's processes export every 10 s what they counted; a shorter look would see little new.
_ONCE_INTERVAL_S = 12.0
_METRICS_WINDOW_S = 30.0


def add_arguments(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser("top", help="watch a running service", description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default=DEFAULT_URL, metavar="BASE", help="the service (default: %(default)s)")
    parser.add_argument("--interval", type=_seconds, metavar="S", help="seconds between looks (default: 2; once: 12)")
    parser.add_argument("--once", action="store_true", help="print one view, of one interval, and end")
    parser.set_defaults(run=lambda parsed: run(parsed.url, parsed.interval, parsed.once))


def run(url: str, interval_s: float | None, once: bool) -> int:
    """Show until Ctrl-C; returns 1 when the service does not answer."""
    interval_s = interval_s or (_ONCE_INTERVAL_S if once else _LIVE_INTERVAL_S)
    from rich.console import Console
    from rich.live import Live

    from cluster.cli.top_view import render
    from cluster.cli.top_watch import ServiceUnreachable, look

    console = Console()
    try:
        looks = deque([look(url)])
        time.sleep(interval_s)
        looks.append(look(url))
        if once:
            console.print(render(looks))
            return 0
        with Live(render(looks), console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval_s)
                looks.append(look(url))
                while len(looks) > 2 and looks[1].moment < looks[-1].moment - _METRICS_WINDOW_S:
                    looks.popleft()
                live.update(render(looks), refresh=True)
    except ServiceUnreachable as error:
        print(f"triptych top: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not an interval: 0.1 to 3600 seconds")
    return seconds
