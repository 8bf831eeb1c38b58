"""`triptych keygen`: writes the key by which the processes of one cluster know each other."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import _SubParsersAction


def add_arguments(verbs: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser(
        "keygen", help="write a new key for the embedding path", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="new file; one that exists is never replaced")
    parser.set_defaults(run=lambda parsed: run(parsed.file))


def run(file: Path) -> int:
    """Write the key; returns 1 when the file cannot be made."""
    from transfer import write_key_file

    try:
        write_key_file(file)
    except OSError as error:
        print(f"cannot write {file}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"wrote {file}; copy it to the same path on every node and set  transfer: {{curve_key_file: {file}}}")
    return 0
