"""Lets NIXL's progress thread sleep between polls on machines whose CPUs do the computing.

NIXL's Python layer fixes the pause of that thread to zero, so it spins: at rest each engine took 80 % of a core, on
machines with two of them more than the model did. A pause of 100 µs took that to 1.5 %, in thousands of wake-ups a
second that stop an encoder's threads in the middle of an operation; with one of a millisecond an encoder was 5 %
faster. Four of them are a part of the time that a token takes, once a request, behind the first token. Devices with
their own memory keep NIXL's choice.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from configs.environment import read_environment


def install() -> None:
    """Apply the pause named in the environment to NIXL agents made later in this process."""
    pause_us = read_environment().nixl_pause_us
    if pause_us is None:
        return
    try:
        from nixl._api import nixl_agent
    except ImportError:
        # Another KV connector is in use.
        return
    api = sys.modules[nixl_agent.__module__]
    if not isinstance(api.nixlBind, _PausingBindings):
        api.nixlBind = _PausingBindings(api.nixlBind, pause_us)  # type: ignore[attr-defined]


class _PausingBindings:
    """NIXL's bindings with another agent configuration class; everything else passes through."""

    def __init__(self, bindings: ModuleType, pause_us: int) -> None:
        self._bindings = bindings

        class PausingAgentConfig(bindings.nixlAgentConfig):  # type: ignore[misc,name-defined]
            def __setattr__(self, name: str, value: object) -> None:
                super().__setattr__(name, pause_us if name == "pthrDelay" and value == 0 else value)

        self.nixlAgentConfig = PausingAgentConfig

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bindings, name)
