"""`triptych ask`: the message it builds, the stream it prints, and what it says when there is no answer."""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.cli.ask import AskError, build_message, image_url
from cluster.cli.main import main

PICTURE = b"\x89PNG\r\n\x1a\n picture"


class OpenAIPeer(BaseHTTPRequestHandler):
    """Speaks as much of the OpenAI API as one question needs; refuses the question 'refuse'."""

    questions: list[dict[str, object]]

    def do_GET(self) -> None:
        self._reply(200, "application/json", json.dumps({"object": "list", "data": [{"id": "small"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.questions.append(body)
        if body["messages"][0]["content"][-1]["text"] == "refuse":
            self._reply(400, "application/json", json.dumps({"error": {"message": "too many pictures"}}))
            return
        deltas = [{"role": "assistant", "content": ""}, {"content": "a red "}, {"content": "circle"}]
        chunks = [json.dumps({"id": "1", "choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
        self._reply(200, "text/event-stream", "".join(f"data: {chunk}\n\n" for chunk in [*chunks, "[DONE]"]))

    def log_message(self, format: str, *args: object) -> None:
        """Tests' output is for failures."""

    def _reply(self, status: int, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def peer_url() -> Iterator[str]:
    OpenAIPeer.questions = []
    with ThreadingHTTPServer(("127.0.0.1", 0), OpenAIPeer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_pictures_come_before_the_question_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(PICTURE)
    message = build_message("Which is red?", [str(file), "https://host/b.jpg"])
    assert message == {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"}},
            {"type": "image_url", "image_url": {"url": "https://host/b.jpg"}},
            {"type": "text", "text": "Which is red?"},
        ],
    }


@pytest.mark.parametrize(
    "name, kind", [("a.jpg", "image/jpeg"), ("a.webp", "image/webp"), ("a", "application/octet-stream")]
)
def test_a_file_tells_its_type(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(PICTURE)
    assert image_url(str(tmp_path / name)).startswith(f"data:{kind};base64,")


def test_a_data_url_stays_as_it_is() -> None:
    assert image_url("data:image/png;base64,AAAA") == "data:image/png;base64,AAAA"


def test_a_missing_file_is_named_before_anything_is_asked(
    tmp_path: Path, peer_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "absent.png"
    with pytest.raises(AskError, match=r"absent\.png"):
        image_url(str(missing))
    assert main(["ask", "--url", peer_url, "--image", str(missing), "What?"]) == 1
    assert "cannot read" in capsys.readouterr().err
    assert OpenAIPeer.questions == []


def test_the_answer_is_printed_as_it_streams(peer_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "--url", peer_url, "--max-tokens", "7", "What is this?"]) == 0
    assert capsys.readouterr().out == "a red circle\n"
    (question,) = OpenAIPeer.questions
    # The served model's name comes from the service itself.
    assert (question["model"], question["max_tokens"], question["stream"]) == ("small", 7, True)


def test_a_refusal_gives_its_reason(peer_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "--url", f"{peer_url}/v1", "--model", "other", "refuse"]) == 1
    captured = capsys.readouterr()
    assert captured.err.rstrip().endswith("answered 400: too many pictures")
    (question,) = OpenAIPeer.questions
    assert question["model"] == "other"
    assert "max_tokens" not in question


def test_no_service_is_said_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert main(["ask", "--url", url, "Hello"]) == 1
    assert f"no service answers at {url}" in capsys.readouterr().err
