"""The socket of an embedding server: how it is set up and bound, and how it sends."""

import errno
import ipaddress

import zmq

from transfer.codec import MAX_CONTROL_BYTES

_HEARTBEAT_MS = 1000
_PEER_SILENCE_MS = 10_000
_MAX_UNREAD = 8192
"""Most messages queued for one peer. libzmq learns of reads in steps of half of it, so only half is always granted:
240 embeddings of 64 MiB, to whose memory the queue only refers, or all that may be parked."""


def router_socket(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """A ROUTER socket that takes control messages alone, and forgets peers that fall silent."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer to a peer that left is an error we can count
    socket.setsockopt(zmq.SNDHWM, _MAX_UNREAD)  # without it a peer that asks and never reads would take all memory
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_CONTROL_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _PEER_SILENCE_MS)
    return socket


def send_now(socket: zmq.Socket[bytes], peer: bytes, header: bytes, data: memoryview | None = None) -> int:
    """Queue a message, its data without a copy; 0, or the errno of why nothing was queued.

    EHOSTUNREACH: the peer has left. EAGAIN: it has not read what was queued before. Raises zmq.ZMQError for others.
    """
    try:
        if data is None:
            socket.send_multipart([peer, header], zmq.NOBLOCK)
        else:
            socket.send_multipart([peer, header, data], zmq.NOBLOCK, copy=False)
    except zmq.ZMQError as error:
        if error.errno not in (errno.EAGAIN, errno.EHOSTUNREACH):
            raise
        return error.errno
    return 0


def bind_to(socket: zmq.Socket[bytes], bind_host: str) -> str:
    """Bind to a free port of that address; the endpoint. Raises zmq.ZMQError when that cannot be done."""
    is_ipv6 = ipaddress.ip_address(bind_host).version == 6
    socket.setsockopt(zmq.IPV6, is_ipv6)
    socket.bind(f"tcp://[{bind_host}]:0" if is_ipv6 else f"tcp://{bind_host}:0")
    endpoint: str = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    return endpoint.rstrip("\0")
