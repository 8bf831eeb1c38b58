"""The one place that reads the environment of a process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

ENGINE_PARENT = "TRIPTYCH_ENGINE_PARENT"
ENGINE_NICENESS = "TRIPTYCH_ENGINE_NICENESS"
NIXL_PAUSE_US = "TRIPTYCH_NIXL_PAUSE_US"
ENABLE_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
CURVE_KEY = "TRIPTYCH_CURVE_KEY"
API_KEYS = "TRIPTYCH_API_KEYS"
API_KEY = "TRIPTYCH_API_KEY"
MAPPED_FROM_BYTES = 32 * 2**20
KEPT_HEAP_BYTES = 2**30
CPU_COMPUTING: Mapping[str, str] = {
    "MALLOC_MMAP_THRESHOLD_": str(MAPPED_FROM_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_HEAP_BYTES),
    "GOMP_SPINCOUNT": "1000",
}
"""For glibc and OpenMP to read when a process starts that computes on a CPU.

Activations are freed and wanted again with every operation. What glibc maps by itself, or gives back from the end of
its heap, comes back as pages that the kernel has to clear first, which takes longer than the operation. Its own limit
for mapping moves with what is freed, and so does what lies between: both are fixed, at the highest that it takes.

A thread that waits for the others of its operation spins for milliseconds, unless its own process has more of them than
there are cores. Stages that share cores wait for threads that another stage keeps from running, and spin in the place
of these: a burst of pictures took twice as long. The number is what OpenMP takes itself where it knows of too many.
"""


@dataclass(frozen=True)
class ProcessEnvironment:
    """What Triptych itself takes from environment variables.

    Attributes:
        ray_address: address of a running Ray cluster to join (`RAY_ADDRESS`), if any.
        engine_parent: process whose end ends this one (`TRIPTYCH_ENGINE_PARENT`), if any.
        engine_niceness: by how much an engine's processes give way to others (`TRIPTYCH_ENGINE_NICENESS`).
        nixl_pause_us: microseconds between polls of NIXL's progress thread (`TRIPTYCH_NIXL_PAUSE_US`), if not its own.
        haproxy: whether HAProxy is to be in front of the service (`RAY_SERVE_ENABLE_HA_PROXY`); None when not said.
        curve_secret: the cluster's key itself (`TRIPTYCH_CURVE_KEY`), if not in a file.
        api_keys: the keys that an ingress takes (`TRIPTYCH_API_KEYS`), as in a file of them.
        api_key: the key that commands send to a service (`TRIPTYCH_API_KEY`), if it asks for one.
    """

    ray_address: str | None
    engine_parent: int | None
    engine_niceness: int
    nixl_pause_us: int | None
    haproxy: bool | None
    curve_secret: str | None = field(default=None, repr=False)
    api_keys: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)

    @property
    def authorization(self) -> dict[str, str]:
        """The headers by which a command shows its key to a service; none without one."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}


def read_environment() -> ProcessEnvironment:
    """Read the variables of this process."""
    parent = os.environ.get(ENGINE_PARENT)
    pause = os.environ.get(NIXL_PAUSE_US)
    haproxy = os.environ.get(ENABLE_HAPROXY)
    return ProcessEnvironment(
        ray_address=os.environ.get("RAY_ADDRESS") or None,
        engine_parent=int(parent) if parent else None,
        engine_niceness=int(os.environ.get(ENGINE_NICENESS) or 0),
        nixl_pause_us=int(pause) if pause else None,
        haproxy=haproxy == "1" if haproxy else None,
        curve_secret=os.environ.get(CURVE_KEY) or None,
        api_keys=os.environ.get(API_KEYS) or None,
        api_key=os.environ.get(API_KEY) or None,
    )


def set_environment(variables: dict[str, str]) -> None:
    """Set variables that libraries of this process read when they are imported or used.

    vLLM takes its side-channel address, thread binding and media connector from variables only.
    """
    os.environ.update(variables)


def set_environment_defaults(variables: dict[str, str]) -> None:
    """As `set_environment`, but what is set already stays."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)
