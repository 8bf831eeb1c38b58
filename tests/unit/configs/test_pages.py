"""The documents name files that exist, and the map of the code leaves no module out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("cluster", "encoder_workers", "llm_workers", "transfer", "npu_kernels", "configs")
PAGES = ["README.md", "CHANGELOG.md", "docs/structure.md", "docs/configuration.md", "docs/models.md"]
# A path in backticks begins with a folder of the repository and has a slash; a link is relative to its page.
_PATH = re.compile(r"`((?:[a-z_]+/)+[\w.]*)`")
_LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = [ROOT / name for name in _PATH.findall(text)]
    links = [(ROOT / page).parent / name for name in _LINK.findall(text)]
    assert [str(path) for path in paths + links if not path.exists()] == []


def test_the_map_has_every_module() -> None:
    """By its own name, or by its folder; a new file without a line there would not be found by its job."""
    text = (ROOT / "docs/structure.md").read_text(encoding="utf-8")
    named = set(_PATH.findall(text))
    missing = []
    for file in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        path = file.relative_to(ROOT)
        folders = {f"{folder.as_posix()}/" for folder in path.parents if folder.as_posix() not in (".", path.parts[0])}
        if file.name != "__init__.py" and not named & {path.as_posix(), *folders}:
            missing.append(path.as_posix())
    assert missing == []
