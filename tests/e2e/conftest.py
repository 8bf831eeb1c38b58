"""The end-to-end fixtures: a Triptych service with two replicas of each stage, and a plain vLLM server as reference.

Each is started once for the whole session, by the command that a user would type.
"""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from openai import OpenAI

from tests.e2e.media import Picture
from tests.e2e.otlp_collector import OTLPCollector
from tests.e2e.servers import Server, reference_server, triptych_server

_TOOL = Path(__file__).parents[2] / "tools" / "make_random_checkpoint.py"
MODEL_NAME = "demo"
MAX_MODEL_LEN = 4096
OPENAPI_REQUESTS = 5000


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint whose output depends on every pixel."""
    folder = tmp_path_factory.mktemp("models") / "demo-random"
    subprocess.run([sys.executable, str(_TOOL), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def collector() -> Iterator[OTLPCollector]:
    """Where the service sends its traces."""
    collector = OTLPCollector()
    yield collector
    collector.close()


@pytest.fixture(scope="session")
def service_settings(checkpoint: Path, collector: OTLPCollector) -> dict[str, object]:
    """Settings of the service under test."""
    engine = {
        "num_replicas": 2,
        "kv_cache_bytes": "192 MiB",
        "engine_args": {"max_model_len": MAX_MODEL_LEN, "enforce_eager": True},
    }
    return {
        "model": str(checkpoint),
        "served_model_name": MODEL_NAME,
        "device": "cpu",
        "dtype": "float32",
        "encoder": {"num_replicas": 2},
        "prefill": engine,
        "decode": engine,
        "transfer": {"lease_s": 30},
        # Traced is what a test asks to be traced.
        "observability": {"otlp_endpoint": collector.endpoint, "trace_sample_ratio": 0},
        "limits": {
            "items_per_prompt": {"image": 4},
            "item_bytes": "8 MiB",
            "pixels": "4 MP",
            "deadline_s": 120,
            "fetch_timeout_s": 5,
            "allowed_media_hosts": ["127.0.0.1"],
        },
    }


@pytest.fixture(scope="session")
def reference_started(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The plain vLLM server, on its way up."""
    with reference_server(checkpoint, MODEL_NAME, MAX_MODEL_LEN, tmp_path_factory.mktemp("reference")) as server:
        yield server


@pytest.fixture(scope="session")
def service(
    service_settings: dict[str, object], reference_started: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The Triptych service."""
    folder = tmp_path_factory.mktemp("service")
    config = folder / "service.yaml"
    config.write_text(yaml.safe_dump(service_settings))
    with triptych_server(config, folder) as server:
        server.wait_until_ready()
        yield server


@pytest.fixture(scope="session")
def client(service: Server) -> OpenAI:
    """The openai package, talking to the service."""
    return service.client()


@pytest.fixture(scope="session")
def reference(reference_started: Server) -> OpenAI:
    """The openai package, talking to one colocated engine of the same checkpoint."""
    reference_started.wait_until_ready()
    return reference_started.client()


def pytest_addoption(parser: pytest.Parser) -> None:
    """What takes longer by hand than in CI."""
    parser.addoption("--openapi-requests", type=int, default=OPENAPI_REQUESTS, help="generated requests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What starts services of its own goes first: beside the shared one, which stays, they would start half as fast."""
    items.sort(key=lambda item: isinstance(item, pytest.Function) and "service" in item.fixturenames)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves what the test put into `pictures`."""

    pictures: dict[str, bytes]

    def do_GET(self) -> None:
        body = self.pictures.get(self.path)
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture(scope="session")
def picture_host() -> Iterator[PictureHost]:
    """An HTTP server on loopback for pictures."""
    host = PictureHost()
    yield host
    host.close()


class PictureHost:
    """Gives pictures URLs."""

    def __init__(self) -> None:
        handler = type("Handler", (_Handler,), {"pictures": {}})
        self._pictures: dict[str, bytes] = handler.pictures
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def url_of(self, picture: Picture) -> str:
        """Publish the picture; its URL."""
        path = f"/{len(self._pictures)}.{picture.suffix}"
        self._pictures[path] = picture.data
        return self.base + path

    @property
    def base(self) -> str:
        """Address of the host, without a path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
