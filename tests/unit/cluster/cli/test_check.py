"""`triptych check`: the plan of good files, the reason of bad ones."""

from pathlib import Path

import pytest

from cluster.cli.main import main

TEXT_ONLY = "model: organisation/name\nserved_model_name: small\n"


def check(text: str, folder: Path) -> int:
    file = folder / "service.yaml"
    file.write_text(text)
    return main(["check", str(file)])


def test_every_ready_file_can_be_used(ready_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(ready_file)]) == 0
    out = capsys.readouterr().out
    assert "E/P/D service" in out
    assert f"{ready_file} can be used" in out


def test_plan_shows_ranks_resources_and_totals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = TEXT_ONLY + (
        "device: npu\n"
        "encoder: {num_replicas: 2, resources_per_rank: {NPU: 1}}\n"
        "prefill: {tensor_parallel_size: 2, resources_per_rank: {NPU: 1}}\n"
        "decode: {autoscaling: {min_replicas: 1, max_replicas: 3}, resources_per_rank: {NPU: 1},"
        " environment: {HCCL_SOCKET_IFNAME: eth0}}\n"
    )
    assert check(text, tmp_path) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["encoder"][1:4] == ["2", "1", "1"]
    assert rows["prefill"][1:5] == ["1", "2", "2", "NPU"]
    assert "1 to 3" in next(line for line in out.splitlines() if line.startswith("decode "))
    assert "decode environment: HCCL_SOCKET_IFNAME=eth0" in out
    # 1 ingress; 2 encoders of 1, 1 prefill of 2, 3 decoders of 1.
    assert "total: at most 7 replicas; resources: 7 NPU" in out


def test_bad_setting_is_named_and_nothing_is_printed_as_a_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(TEXT_ONLY + "decoder: {}\n", tmp_path) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "decoder: unknown setting; did you mean 'decode'?" in captured.err


def test_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "absent.yaml")]) == 1
    assert "absent.yaml: No such file" in capsys.readouterr().err


def test_engine_args_that_vllm_does_not_take_are_all_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Engines would refuse them one by one, each after a minute of starting."""
    text = TEXT_ONLY + (
        "prefill: {engine_args: {max_model_lenn: 4096, enforce_eager: true}}\n"
        "decode: {engine_args: {enforce_eager: true, no_such_thing_at_all: 1}}\n"
    )
    assert check(text, tmp_path) == 1
    captured = capsys.readouterr()
    assert "prefill.engine_args.max_model_lenn" in captured.err
    assert "did you mean 'max_model_len'?" in captured.err
    assert "decode.engine_args.no_such_thing_at_all" in captured.err
    assert "enforce_eager" not in captured.err
    assert "can be used" not in captured.out
