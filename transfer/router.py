"""The socket of an embedding server: how it is set up and bound."""

import ipaddress

import zmq

from transfer.codec import MAX_CONTROL_BYTES

_HEARTBEAT_MS = 1000
_PEER_SILENCE_MS = 10_000


def router_socket(context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    """A ROUTER socket that takes control messages alone, and forgets peers that fall silent."""
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer to a peer that left is an error we can count
    socket.setsockopt(zmq.SNDHWM, 0)  # queued frames only refer to payloads; dropping one would lose an answer
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_CONTROL_BYTES)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _PEER_SILENCE_MS)
    return socket


def bind_to(socket: zmq.Socket[bytes], bind_host: str) -> str:
    """Bind to a free port of that address; the endpoint. Raises zmq.ZMQError when that cannot be done."""
    is_ipv6 = ipaddress.ip_address(bind_host).version == 6
    socket.setsockopt(zmq.IPV6, is_ipv6)
    socket.bind(f"tcp://[{bind_host}]:0" if is_ipv6 else f"tcp://{bind_host}:0")
    endpoint: str = socket.getsockopt_string(zmq.LAST_ENDPOINT)
    return endpoint.rstrip("\0")
