"""CURVE encryption and authentication of our sockets by one key that all processes of a cluster share."""

import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.auth.thread import ThreadAuthenticator

from configs.environment import CURVE_KEY, read_environment


@dataclass(frozen=True, slots=True)
class CurveKey:
    """The cluster's key pair in Z85 text, 40 characters each; whoever has the secret belongs to the cluster."""

    secret: str = field(repr=False)
    public: str

    @classmethod
    def generate(cls) -> "CurveKey":
        """A new random key."""
        public, secret = zmq.curve_keypair()
        return cls(secret.decode(), public.decode())

    @classmethod
    def from_secret(cls, secret: str) -> "CurveKey":
        """The pair of a secret as `generate` made it; ValueError when it is not one."""
        try:
            return cls(secret, zmq.curve_public(secret.encode()).decode())
        except (zmq.ZMQError, UnicodeEncodeError, ValueError) as error:
            raise ValueError("a cluster key is 40 characters of Z85 text") from error


def cluster_key(key_file: Path | None) -> CurveKey | None:
    """The key of this cluster: from TRIPTYCH_CURVE_KEY, else from `key_file`; None when neither is given.

    Raises ValueError when it cannot be read or is none.
    """
    secret = read_environment().curve_secret
    source = CURVE_KEY
    if secret is None:
        if key_file is None:
            return None
        source = f"transfer.curve_key_file {key_file}"
        try:
            secret = key_file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise ValueError(f"{source} cannot be read: {reason}; 'triptych keygen {key_file}' makes one") from error
    try:
        return CurveKey.from_secret(secret.strip())
    except ValueError as error:
        raise ValueError(f"{source} holds no key: {error}; 'triptych keygen FILE' makes one") from error


def write_key_file(path: Path) -> None:
    """A new key into a new file that its owner alone can read. Raises FileExistsError rather than replace one."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{CurveKey.generate().secret}\n")


def require_key(key: CurveKey | None, bind_host: str, insecure: bool) -> None:
    """ValueError when a server at `bind_host` would answer other machines without a key and nobody asked for that."""
    if key is None and not insecure and not ipaddress.ip_address(bind_host).is_loopback:
        raise ValueError(
            f"encoders at {bind_host} could be read by any machine that reaches them: run 'triptych keygen FILE', put "
            "FILE on every node and set transfer.curve_key_file to it (or TRIPTYCH_CURVE_KEY to its content); "
            "or set transfer.insecure: true, where only trusted machines share the network"
        )


def secure_client(socket: "zmq.Socket[bytes]", key: CurveKey) -> None:
    """Have a socket, before it connects, talk only to servers of the cluster, encrypted."""
    socket.setsockopt_string(zmq.CURVE_SERVERKEY, key.public)
    socket.setsockopt_string(zmq.CURVE_PUBLICKEY, key.public)
    socket.setsockopt_string(zmq.CURVE_SECRETKEY, key.secret)


def secure_server(socket: "zmq.Socket[bytes]", key: CurveKey) -> Callable[[], None]:
    """Have a socket, before it binds, admit only clients of the cluster, encrypted.

    Starts a thread that admits for the socket's context, which may hold one such server; returns how to stop it.
    """
    authenticator = ThreadAuthenticator(socket.context)
    authenticator.start()
    authenticator.configure_curve_callback("*", _OneKey(key))
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt_string(zmq.CURVE_SECRETKEY, key.secret)
    return authenticator.stop


class _OneKey:
    def __init__(self, key: CurveKey) -> None:
        self._public = key.public.encode()

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._public
