"""docs/support_matrix.md names every model, every cell has tests that exist, and results make the right cells."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from make_random_checkpoint import FAMILIES
from support_matrix import Outcome, accuracy, read_outcomes, render, verdict
from support_matrix_cells import CLAIMS, MODELS, Backing

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "support_matrix.md").read_text()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_cell_has_tests_that_exist(model) -> None:
    for backing in model.tests.values():
        for tests in backing:
            defined = {node.name for node in ast.parse((ROOT / tests.file).read_text()).body if hasattr(node, "name")}
            assert set(tests.names) <= defined, tests


def test_the_page_has_all_models_and_nothing_that_failed() -> None:
    for model in MODELS:
        assert PAGE.count(f"\n| {model.name} |") >= 5, model.name
    assert all(f"**{claim.title}**" in PAGE for claim in CLAIMS if claim.key != "accuracy")
    assert "failed" not in PAGE
    # The page's frame is what the generator makes: only cells differ from one without results.
    prose = [line for line in render([], []).splitlines() if not line.startswith("| ")]
    assert [line for line in PAGE.splitlines() if not line.startswith("| ")] == prose


def test_every_family_is_a_row() -> None:
    named = {tests.parameter for model in MODELS for tests in model.tests["service"]}
    assert named == set(FAMILIES)


def outcome(name: str, *, passed: bool = True, skipped: bool = False, noted: str = "") -> Outcome:
    notes = (("accuracy bfloat16", noted),) if noted else ()
    return Outcome("tests.unit.test_x", name, passed, skipped, notes)


def test_cells_say_what_the_tests_said() -> None:
    tests = (Backing("tests/unit/test_x.py", ("test_a", "test_b"), "qwen2"),)
    both = [outcome("test_a[qwen2-1]"), outcome("test_b[big-qwen2]"), outcome("test_a[qwen2.5]", passed=False)]
    assert verdict(both, tests) == "yes", "qwen2.5 is another model"
    assert verdict(both[:1], tests) == "not run"
    assert verdict([both[0], outcome("test_b[qwen2]", skipped=True)], tests) == "not run"
    assert verdict([*both, outcome("test_b[qwen2]", passed=False)], tests) == "**failed**"
    assert verdict(both, ()) == "–"


def test_accuracy_is_the_largest_that_was_noted() -> None:
    model = MODELS[0]
    (backing,) = model.tests["accuracy"]
    file = backing.file.removesuffix(".py").replace("/", ".")
    found = [
        Outcome(file, f"{backing.names[1]}[{i}]", True, False, (("accuracy bfloat16", e),))
        for i, e in enumerate(("9.0e-03", "1.2e-02"))
    ]
    assert accuracy(found, model, "bfloat16") == "1.2e-02"
    assert accuracy(found, model, "float32") == "not run"


def test_outcomes_are_read_with_their_notes(tmp_path: Path) -> None:
    file = tmp_path / "tests.xml"
    file.write_text(
        '<testsuites><testsuite><testcase classname="tests.npu.test_npu_backend" name="test_the_ascend_backend">'
        '<properties><property name="case test_c[qwen2_vl]" value="passed"/>'
        '<property name="case test_d" value="failure"/></properties><failure/></testcase></testsuite></testsuites>'
    )
    assert [(o.file, o.name, o.passed) for o in read_outcomes([file])] == [
        ("tests.npu.npu_cases", "test_c[qwen2_vl]", True),
        ("tests.npu.npu_cases", "test_d", False),
        ("tests.npu.test_npu_backend", "test_the_ascend_backend", False),
    ]
