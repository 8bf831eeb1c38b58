"""Finds in Ray Serve's status what a person wants to know when a deployment does not start: the exception itself."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ray.serve.schema import ApplicationStatusOverview, DeploymentStatus, DeploymentStatusOverview

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_FRAME = re.compile(r"\s+File \"")
_MAX_LINE = 240


def explain_failure(application: ApplicationStatusOverview, logs: str) -> str:
    """Which deployments failed and why, one paragraph each, and where the rest can be read.

    Args:
        logs: folder of the replicas' logs; an engine's own process says why it failed only there.
    """
    failed = {
        name: exception_text(status.message)
        for name, status in application.deployments.items()
        if status.status in (DeploymentStatus.DEPLOY_FAILED, DeploymentStatus.UNHEALTHY)
    }
    reasons = [f"{name}: {reason}" for name, reason in failed.items()] or [exception_text(application.message)]
    return "\n".join([*reasons, f"logs of all processes: {logs}"])


def failed_attempts(deployments: Mapping[str, DeploymentStatusOverview]) -> dict[str, str]:
    """Deployments that failed to start and are being tried again, with the beginning of the reason on one line."""
    return {
        name: " ".join(exception_text(status.message).split())[:_MAX_LINE]
        for name, status in deployments.items()
        if status.status is not DeploymentStatus.DEPLOY_FAILED and _FRAME.search(status.message)
    }


def exception_text(message: str) -> str:
    """The exception under the last traceback in `message`; all of `message` when there is none."""
    lines = _ANSI.sub("", message).strip().splitlines()
    frames = [number for number, line in enumerate(lines) if _FRAME.match(line)]
    if frames:
        below = lines[frames[-1] + 1 :]
        first = next((number for number, line in enumerate(below) if line and not line[0].isspace()), None)
        if first is not None:
            return "\n".join(below[first:])
    return "\n".join(lines)
