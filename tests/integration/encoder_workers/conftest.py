"""A tiny checkpoint, pictures as files, and a web server on loopback that answers as it is told."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from make_random_checkpoint import make_checkpoint
from PIL import Image


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("checkpoints") / "tiny"
    make_checkpoint(out_dir)
    return out_dir


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """The PNG file of a picture of noise: equal seeds give equal bytes."""

    def make(seed: int, height: int = 84, width: int = 112) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        return out.getvalue()

    return make


@dataclass
class Web:
    """Answers by path; `hits` are the paths asked for, `sent_bytes` what left for the last of them."""

    url: str = ""
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    hits: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)

    def answer(self, path: str, body: bytes, status: int = 200, **headers: str) -> str:
        def send(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        self.answers[path] = send
        return self.url + path

    def stream(self, path: str, part: bytes, num_parts: int, pause_s: float = 0.0) -> str:
        """A body without a declared length, that ends with the connection."""

        def send(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.end_headers()
            for _ in range(num_parts):
                try:
                    handler.wfile.write(part)
                except OSError:
                    self.hits.append(f"{path} cut")
                    return
                time.sleep(pause_s)

        self.answers[path] = send
        return self.url + path


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.hits.append(self.path)
            made.hosts.append(self.headers["Host"])
            made.answers[self.path](self)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield made
    server.shutdown()
    thread.join(20)
    server.server_close()
