"""Guards: a process without the cluster's key that reads embeddings or ends leases, and a secret that is logged."""

import contextlib
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
import zmq

from cluster.cli.main import main
from configs import ConfigError, parse_config
from configs.environment import read_environment
from transfer import (
    ClientSettings,
    CurveKey,
    EncoderLost,
    Release,
    ServerSettings,
    cluster_key,
    encode,
    require_key,
    write_key_file,
)
from transfer.curve import secure_client

TENSOR = torch.randn(300, 1024)
FAR_S = 200.0
WAIT_S = 60.0


def test_ends_with_the_key_exchange_embeddings(bench: Any, eventually: Any) -> None:
    key = CurveKey.generate()
    server = bench.server(ServerSettings(curve=key))
    client = bench.client(ClientSettings(curve=CurveKey.from_secret(key.secret)))
    ref = bench.offer(server, TENSOR)
    assert torch.equal(client.fetch(ref, FAR_S).result(WAIT_S), TENSOR)
    client.release(ref)
    eventually(lambda: server.stats().num_leases == 0)


@pytest.mark.parametrize(
    ("server_has_key", "client_has_key"), [(True, False), (False, True), (True, True)], ids=["plain", "server", "other"]
)
def test_ends_with_different_keys_do_not_talk(bench: Any, server_has_key: bool, client_has_key: bool) -> None:
    server = bench.server(ServerSettings(curve=CurveKey.generate() if server_has_key else None))
    client = bench.client(ClientSettings(curve=CurveKey.generate() if client_has_key else None))
    ref = bench.offer(server, TENSOR)
    client.release(ref)
    assert isinstance(client.fetch(ref, FAR_S).exception(WAIT_S), EncoderLost)
    assert server.stats().num_leases == 1


def test_knowing_the_public_key_is_not_enough(bench: Any) -> None:
    key, own = CurveKey.generate(), CurveKey.generate()
    server, client = bench.server(ServerSettings(curve=key)), bench.client(ClientSettings(curve=key))
    ref = bench.offer(server, TENSOR)
    with zmq.Context() as context, context.socket(zmq.DEALER) as intruder:
        intruder.setsockopt(zmq.LINGER, 0)
        secure_client(intruder, own)
        intruder.setsockopt_string(zmq.CURVE_SERVERKEY, key.public)
        monitor = intruder.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.HANDSHAKE_FAILED_AUTH)
        intruder.connect(server.endpoint)
        intruder.send(encode(Release(ref.transfer_id)))
        assert monitor.poll(int(WAIT_S * 1000))
        event = zmq.utils.monitor.recv_monitor_message(monitor)["event"]
        assert event == zmq.Event.HANDSHAKE_FAILED_AUTH
        intruder.disable_monitor()
        monitor.close(linger=0)
    assert torch.equal(client.fetch(ref, FAR_S).result(WAIT_S), TENSOR)


def test_a_key_is_checked_and_its_secret_not_shown() -> None:
    key = CurveKey.generate()
    assert CurveKey.from_secret(key.secret) == key
    assert key.secret not in repr(ServerSettings(curve=key))
    for text in ("", "short", "x" * 41, "é" * 40):
        with pytest.raises(ValueError, match="40 characters"):
            CurveKey.from_secret(text)


def test_a_key_file_is_its_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "key"
    write_key_file(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = cluster_key(file)
    assert key is not None
    assert key.secret == file.read_text().strip()
    with pytest.raises(FileExistsError):
        write_key_file(file)
    assert cluster_key(file) == key


def test_the_key_of_the_environment_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster_key(None) is None
    write_key_file(tmp_path / "key")
    key = CurveKey.generate()
    monkeypatch.setenv("TRIPTYCH_CURVE_KEY", key.secret)
    assert cluster_key(tmp_path / "key") == key
    assert cluster_key(None) == key
    assert key.secret not in repr(read_environment())
    monkeypatch.setenv("TRIPTYCH_CURVE_KEY", "short")
    with pytest.raises(ValueError, match="TRIPTYCH_CURVE_KEY holds no key"):
        cluster_key(None)


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 40, b"short"])
def test_a_key_file_that_holds_no_key_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "broken"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"transfer\.curve_key_file .*broken .*triptych keygen"):
        cluster_key(file)


@pytest.mark.parametrize(
    ("host", "insecure", "refused"),
    [("127.0.0.1", False, False), ("::1", False, False), ("10.0.0.1", False, True), ("10.0.0.1", True, False)],
)
def test_a_key_is_required_wherever_other_machines_reach(host: str, insecure: bool, refused: bool) -> None:
    require_key(CurveKey.generate(), host, insecure)
    with pytest.raises(ValueError, match="insecure: true") if refused else contextlib.nullcontext():
        require_key(None, host, insecure)


def test_keygen_writes_a_key_and_says_what_to_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "key"
    assert main(["keygen", str(file)]) == 0
    assert f"curve_key_file: {file}" in capsys.readouterr().out
    key = cluster_key(file)
    assert key is not None
    assert main(["keygen", str(file)]) == 1
    assert "exists" in capsys.readouterr().err
    assert cluster_key(file) == key
    assert main(["keygen", str(tmp_path / "no" / "key")]) == 1


@pytest.mark.parametrize(
    ("transfer", "words"),
    [
        ({"insecure": True, "curve_key_file": "k"}, "exclude each other"),
        ({"channels": ["shm", "shm"]}, "twice"),
        ({"channels": ["rdma"]}, "channels"),
        ({"channels": []}, "channels"),
        ({"arena_bytes": "1 KiB"}, "arena_bytes"),
    ],
)
def test_settings_that_cannot_work_are_refused(transfer: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config({"model": "an/example", "decode": {}, "transfer": transfer})


def test_settings_reach_the_replicas_as_they_are() -> None:
    transfer = {"channels": ["zmq"], "arena_bytes": "64 MiB", "checksum": True, "curve_key_file": "k"}
    config = parse_config({"model": "an/example", "decode": {}, "transfer": transfer})
    assert parse_config(config.model_dump(mode="json", exclude_none=True)) == config
    assert config.transfer.arena_bytes == 64 * 2**20
    assert parse_config({"model": "an/example", "decode": {}}).transfer.channels == ("shm", "zmq")
