"""`triptych doctor`: what it finds on this machine, and how it reports what is missing."""

import platform
from importlib import metadata

from cluster.cli.doctor import (
    Finding,
    device_findings,
    device_kinds,
    import_failure,
    report_lines,
    shared_memory_finding,
    version_findings,
)
from npu_kernels import OP_NAMES


def test_versions_are_the_installed_ones() -> None:
    values = {finding.name: finding.value for finding in version_findings()}
    assert values["python"] == platform.python_version()
    for name in ("triptych", "torch", "ray", "transformers"):
        assert values[name] == metadata.version(name)


def test_cpu_is_a_device_and_every_operator_has_a_backend_there() -> None:
    assert "cpu" in device_kinds()
    device, kernels = device_findings(["cpu"])
    assert device.mend is None
    assert [entry.split()[0] for entry in kernels.value.split(", ")] == list(OP_NAMES)


def test_a_device_that_cannot_be_used_gets_the_line_that_mends_it() -> None:
    """A node in /dev without its library: the driver is there, the installation is not."""
    unusable = [kind for kind in ("cuda", "npu") if kind not in device_kinds()]
    for finding in device_findings(unusable):
        kind = finding.name.removeprefix("device ")
        assert finding.mend is not None
        assert f".[{kind}]" in finding.mend


def test_importing_is_tried_in_earnest() -> None:
    assert import_failure("json") is None
    failure = import_failure("no_such_library")
    assert failure is not None
    assert "ModuleNotFoundError" in failure


def test_shared_memory_is_measured() -> None:
    finding = shared_memory_finding()
    assert finding.name == "/dev/shm"
    assert float(finding.value.split()[0]) >= 0


def test_report_ends_with_what_to_mend() -> None:
    lines = report_lines([Finding("python", "3.11.7"), Finding("vllm", "not installed", "make install")])
    assert lines[0].split() == ["python", "3.11.7"]
    assert lines[-3:] == ["missing:", "  vllm: not installed", "    -> make install"]


def test_report_says_when_nothing_is_missing() -> None:
    assert report_lines([Finding("python", "3.11.7")])[-1] == "ready to serve"
