"""A TCP port for libraries that cannot bind port 0 themselves."""

from __future__ import annotations

import errno
import random
import socket

# What bind(0) gives may be taken again for somebody's outgoing connection before it is used, a minute later where a
# service starts on a busy machine. These are below the ports of such connections (32768 on Linux), and beside those of
# Ray's workers (10002 to 19999) and of Serve's ingress replicas (30000 to 31000).
PORTS = range(20000, 30000)


_promises: list[socket.socket] = []


def free_port(host: str) -> int:
    """A port that is free now on `host`, an address of this machine; "" for all of them.

    Nobody else who asks here gets it as long as this process lives, so that it may be bound later, by another process.

    Raises:
        OSError: the address is not this machine's, or no port is free.
    """
    # Processes that were forked from one another, or that somebody has seeded, must not try the same ones.
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
        if _promise(port):
            return port
    raise OSError(errno.EADDRINUSE, f"no port of {PORTS.start} to {PORTS.stop - 1} is free on {host!r}")


def _promise(port: int) -> bool:
    """Whether nobody was promised this port: a name of Linux's abstract sockets, which has one owner and ends with it.

    Like ports these names are those of a network namespace.
    """
    promise = socket.socket(socket.AF_UNIX)
    try:
        promise.bind(f"\0triptych-port-{port}")
    except OSError as error:
        promise.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return False
    _promises.append(promise)
    return True
