"""Ray Serve's own switches, which it reads from the environment where a process of its begins."""

from __future__ import annotations

from collections.abc import Mapping

REPLICA_ENVIRONMENT: Mapping[str, str] = {
    # User code and routers on the replica's one event loop: a call between replicas takes half the time, and nothing of
    # ours blocks that loop.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    # A call may be of any size here, since what is sent has limits of its own (`limits`).
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),
}
