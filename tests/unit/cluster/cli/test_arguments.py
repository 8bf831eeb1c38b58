"""The command line: what each verb takes, and that help needs no heavy library."""

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.cli.main import build_parser, main


@pytest.mark.parametrize("verb", ["serve", "check", "ask", "top", "bench", "doctor", "keygen"])
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"triptych {verb}" in capsys.readouterr().out


def test_serve_takes_port_and_address() -> None:
    parsed = build_parser().parse_args(["serve", "some.yaml", "--port", "8100", "--address", "10.0.0.1:6379"])
    assert (parsed.config, parsed.port, parsed.address) == (Path("some.yaml"), 8100, "10.0.0.1:6379")


def test_serve_defaults() -> None:
    parsed = build_parser().parse_args(["serve", "some.yaml"])
    assert (parsed.port, parsed.address) == (8000, None)


def test_ask_takes_several_images() -> None:
    parsed = build_parser().parse_args(["ask", "--image", "a.png", "--image", "https://host/b.png", "Which?"])
    assert parsed.image == ["a.png", "https://host/b.png"]
    assert parsed.question == "Which?"


@pytest.mark.parametrize(
    "arguments",
    [[], ["bake"], ["serve"], ["serve", "a.yaml", "--port", "0"], ["serve", "a.yaml", "--port", "65536"], ["ask"]],
)
def test_what_is_not_understood_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: triptych" in capsys.readouterr().err


def test_help_imports_no_heavy_library() -> None:
    """An import at the top of a verb would make every command wait for it."""
    program = (
        "import sys; from cluster.cli.main import build_parser; build_parser().format_help(); "
        "print([name for name in ('ray', 'vllm', 'torch', 'openai', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
