"""A TCP port for libraries that cannot bind port 0 themselves."""

from __future__ import annotations

import errno
import random
import socket

# What bind(0) gives may be taken again for somebody's outgoing connection before it is used, a minute later where a
# service starts on a busy machine. These are below the ports of such connections (32768 on Linux), and beside those of
# Ray's workers (10002 to 19999) and of Serve's ingress replicas (30000 to 31000).
PORTS = range(20000, 30000)


def free_port(host: str) -> int:
    """A port that is free now on `host`, an address of this machine; "" for all of them.

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
            else:
                return port
    raise OSError(errno.EADDRINUSE, f"no port of {PORTS.start} to {PORTS.stop - 1} is free on {host!r}")
