"""`triptych serve` before anything starts, its supervisor over real processes, and the line it gives to try."""

import io
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from cluster.cli.main import main
from cluster.cli.service_process import curl_line, plain_png
from configs import parse_config

# A supervisor over a process that stands in for the service: it says its pid and ends when its input does.
SUPERVISOR = """
import sys
from cluster.cli.serve import Supervisor
sys.exit(Supervisor([sys.executable, "-c", {service!r}]).run())
"""
OBEDIENT = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read(); print('closed', flush=True)"
FAILING = "import os, sys; print(os.getpid(), flush=True); sys.exit(1)"


def start(service: str) -> tuple[subprocess.Popen[str], int]:
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR.format(service=service)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_service_in_order(number: signal.Signals) -> None:
    process, service = start(OBEDIENT)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.splitlines()[:2] == [f"ending ({number.name})", "closed"]
    assert not is_alive(service)


def test_more_signals_change_nothing() -> None:
    process, service = start("import time\n" + OBEDIENT + "; time.sleep(1)")
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(0.2)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.count("ending") == 1
    assert not is_alive(service)


def test_a_killed_command_takes_the_service_with_it() -> None:
    process, service = start(OBEDIENT)
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while is_alive(service) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(service)


def test_a_failed_start_is_the_exit_status() -> None:
    process, _ = start(FAILING)
    process.communicate(timeout=30)
    assert process.returncode == 1


def test_a_service_that_dies_is_a_failure_and_leaves_nothing() -> None:
    process, service = start("import subprocess\nsubprocess.Popen(['sleep', '1'])\n" + OBEDIENT)
    os.kill(service, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 1


def test_a_port_in_use_is_reported_before_anything_starts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "service.yaml"
    file.write_text("model: organisation/name\ndecode: {}\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert main(["serve", str(file), "--port", str(port)]) == 1
    captured = capfd.readouterr()
    assert f"port {port} cannot be used: Address already in use" in captured.err
    assert captured.out == ""


def test_bad_settings_are_reported_before_anything_starts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "service.yaml"
    file.write_text("model: organisation/name\n")
    assert main(["serve", str(file)]) == 1
    captured = capfd.readouterr()
    assert "decode: required setting is missing" in captured.err
    assert captured.out == ""


def test_the_picture_to_try_is_a_picture() -> None:
    image = Image.open(io.BytesIO(plain_png(56, (255, 0, 0))))
    assert image.size == (56, 56)
    assert image.getcolors() == [(56 * 56, (255, 0, 0))]


@pytest.mark.parametrize("encoder, kind", [({"encoder": {}}, list), ({}, str)])
def test_the_line_to_try_is_one_shell_command(encoder: dict[str, object], kind: type) -> None:
    config = parse_config({"model": "organisation/name", "served_model_name": "it's", "decode": {}, **encoder})
    line = curl_line("http://127.0.0.1:8000", config)
    assert "\n" not in line
    words = shlex.split(line)
    assert words[0] == "curl"
    assert "http://127.0.0.1:8000/v1/chat/completions" in words
    body = json.loads(words[-1])
    assert body["model"] == "it's"
    assert isinstance(body["messages"][0]["content"], kind)
