"""What the command's tests share: the ready files, and a folder in which the demo checkpoint seems to be."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
READY_FILES = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


@pytest.fixture(params=READY_FILES)
def ready_file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each deployment file in turn, with the working folder where the demo's checkpoint has its config.json."""
    checkpoint = tmp_path / "examples/demo_model/checkpoint"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    name: str = request.param
    return ROOT / "configs" / name
