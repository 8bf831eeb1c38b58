"""Reads the command line and runs one verb; a verb's libraries are imported only when it runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cluster.cli import ask, bench, check, doctor, keygen, serve, top

_DESCRIPTION = "Serve multimodal language models with encode, prefill and decode apart."


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Each verb sets `run`: a function from its arguments to an exit status."""
    parser = argparse.ArgumentParser(prog="triptych", description=_DESCRIPTION)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in (serve, check, ask, top, bench, doctor, keygen):
        verb.add_arguments(verbs)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 not understood."""
    parsed = build_parser().parse_args(arguments)
    status: int = parsed.run(parsed)
    return status
