"""The console command `triptych`: one file per verb."""

from cluster.cli.main import main

__all__ = ["main"]
