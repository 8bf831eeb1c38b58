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


def test_the_policy_of_each_stage_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = TEXT_ONLY + (
        "prefill: {autoscaling: {max_replicas: 2}}\n"
        "decode: {autoscaling: {max_replicas: 2, policy: "
        "{policy_function: decode_load, policy_kwargs: {target_tpot_s: 0.05}}}}\n"
    )
    assert check(text, tmp_path) == 0
    out = capsys.readouterr().out
    assert "prefill autoscaling: Ray's own, by target_ongoing_requests" in out
    assert "decode autoscaling: decode_load(target_tpot_s=0.05)" in out


def test_the_policy_of_all_stages_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        TEXT_ONLY + "decode: {autoscaling: {max_replicas: 2}}\nautoscaling_policy: {policy_function: balanced_stages}\n"
    )
    assert check(text, tmp_path) == 0
    assert "autoscaling of decode: balanced_stages()" in capsys.readouterr().out


SERVE_FILE = """
applications:
  - {name: other, import_path: other.app:app}
  - name: triptych
    import_path: cluster.app:build_app
    autoscaling_policy: {policy_function: POLICY}
    args: {model: organisation/name, decode: {autoscaling: {max_replicas: 2}}}
"""


def test_a_serve_config_file_is_checked_like_a_deployment_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "cluster.autoscaling.balanced:BalancedStagesPolicy"
    assert check(SERVE_FILE.replace("POLICY", path), tmp_path) == 0
    assert "autoscaling of decode: balanced_stages()" in capsys.readouterr().out
    # Ray would look for a module of that name, in the cluster.
    assert check(SERVE_FILE.replace("POLICY", "balanced_stages"), tmp_path) == 1
    assert "give the import path" in capsys.readouterr().err
    assert check(SERVE_FILE.replace("cluster.app", "no.app").replace("POLICY", path), tmp_path) == 1
    assert "must have one application with 'import_path: cluster.app:build_app'" in capsys.readouterr().err


def test_a_policy_among_the_args_of_a_serve_config_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray would not see it there."""
    text = SERVE_FILE.replace("args: {", "args: {autoscaling_policy: {policy_function: balanced_stages}, ")
    assert check(text.replace("    autoscaling_policy: {policy_function: POLICY}\n", ""), tmp_path) == 1
    assert "args.autoscaling_policy: belongs beside import_path" in capsys.readouterr().err
