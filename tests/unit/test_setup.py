"""Set-up: the lock is complete, stamps tell a good environment from others, and torchvision imports everywhere."""

from __future__ import annotations

import multiprocessing
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from environment_stamp import LOCK_FILE, UNFINISHED, Stamp, exclusive, read_stamp, wanted_stamp, write_stamp
from install_environment import ROOT, SetUpError, locked_packages, make_empty, site_packages
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pip_shards import PipError, pip_install

# Asked for by a locked package and left out on purpose; the head of the lock file says why.
LEFT_OUT = {"torchaudio", "torchcodec", "triton", "nixl-cu12"}


def locked() -> dict[str, str]:
    """Version by canonical name of all that is locked."""
    torch, others = locked_packages(ROOT / LOCK_FILE)
    pairs = (line.split("==") for line in [torch, *others])
    return {canonicalize_name(name): version for name, version in pairs}


def test_lock_covers_the_project() -> None:
    """A dependency added to pyproject.toml but not locked would be missing after set-up."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    versions = locked()
    wrong = [
        text
        for text in [*project["dependencies"], *extras["cpu"], *extras["dev"]]
        if not Requirement(text).specifier.contains(versions.get(canonicalize_name(Requirement(text).name), "0"))
    ]
    assert wrong == []


def test_lock_is_closed_under_dependencies() -> None:
    """Installed without resolution, so a package that another one asks for has to be in the list itself."""
    versions = locked()
    missing = []
    for name in versions:
        try:
            asked = requires(name) or []
        except PackageNotFoundError:
            missing.append(f"{name} is locked but not installed")
            continue
        for requirement in map(Requirement, asked):
            wanted = canonicalize_name(requirement.name)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
                continue
            if wanted not in versions and wanted not in LEFT_OUT:
                missing.append(f"{name} asks for {requirement}")
    assert missing == []
    assert not LEFT_OUT & set(versions)


@pytest.mark.parametrize("line", ["numpy>=2", "numpy", "-e .", "numpy==2 ; python_version > '3'", "torch==3"])
def test_lock_takes_exact_versions_only(line: str, tmp_path: Path) -> None:
    """A loose line would make two machines differ."""
    lock = tmp_path / "cpu.lock"
    lock.write_text(f"# comment\ntorch==2.13.0+cpu\n{line}\n")
    with pytest.raises(SetUpError, match="name==version"):
        locked_packages(lock)


def small_project(root: Path) -> Path:
    """A copy of the files that decide on set-up."""
    for name in ("pyproject.toml", LOCK_FILE):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "tools", root / "tools")
    return root


@pytest.mark.parametrize(
    ("name", "anew"),
    [
        (LOCK_FILE, True),
        ("pyproject.toml", False),
        ("tools/install_environment.py", False),
        ("tools/torchvision_shim/triptych_torchvision_shim.py", False),
    ],
)
def test_stamp_follows_the_files(name: str, anew: bool, tmp_path: Path) -> None:
    """A changed lock makes the environment anew; a changed project is installed again; nothing else costs anything."""
    root = small_project(tmp_path / "a b")
    before = wanted_stamp(root, root / ".venv")
    assert wanted_stamp(root, root / ".venv") == before
    (root / "README.md").write_text("no part of set-up")
    assert wanted_stamp(root, root / ".venv") == before
    with (root / name).open("a") as file:
        file.write("# changed\n")
    after = wanted_stamp(root, root / ".venv")
    assert (after.locked != before.locked) == anew
    assert (after.project != before.project) == (not anew)


def test_moved_environment_is_not_taken_for_good(tmp_path: Path) -> None:
    """Its scripts name the old path."""
    assert wanted_stamp(ROOT, tmp_path / "a") != wanted_stamp(ROOT, tmp_path / "b")


def test_stamp_round_trip(tmp_path: Path) -> None:
    """A damaged stamp counts as unfinished, so that the environment is made anew; an absent one is told apart."""
    assert read_stamp(tmp_path) is None
    write_stamp(tmp_path, Stamp("a", "b"))
    assert read_stamp(tmp_path) == Stamp("a", "b")
    for damage in ("", "{", "[]", '{"locked": "a"}'):
        (tmp_path / "triptych-stamp.json").write_text(damage)
        assert read_stamp(tmp_path) == UNFINISHED


def test_unfinished_environment_is_made_anew(tmp_path: Path) -> None:
    """What a killed set-up left is removed, and the new one is unfinished until its last step."""
    venv = tmp_path / "a b" / ".venv"
    venv.mkdir(parents=True)
    write_stamp(venv, UNFINISHED)
    (venv / "half-unpacked").write_text("")
    make_empty(venv)
    assert not (venv / "half-unpacked").exists()
    assert read_stamp(venv) == UNFINISHED
    assert site_packages(venv / "bin" / "python").is_relative_to(venv)


def test_environment_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    """Set-up must not delete an environment that it has not made."""
    (tmp_path / "bin").mkdir()
    with pytest.raises(SetUpError, match="was not made here"):
        make_empty(tmp_path)
    assert (tmp_path / "bin").is_dir()


def test_pip_failure_is_reported(tmp_path: Path) -> None:
    """The message has pip's own last lines; a second process that would have succeeded does not hide it."""
    fails, succeeds = ["--no-index", "there-is-no-such-package==1"], ["--no-index", "pytest"]
    pip_install(Path(sys.executable), [succeeds], tmp_path, report=lambda _: None)
    with pytest.raises(PipError, match="No matching distribution found for there-is-no-such-package"):
        pip_install(Path(sys.executable), [succeeds, fails], tmp_path, report=lambda _: None)


def hold_until(lock: Path, held: Event, let_go: Event) -> None:
    """Body of a process: hold the lock until told."""
    with exclusive(lock, 10.0, lambda: None):
        held.set()
        assert let_go.wait(30)


def test_two_set_ups_take_turns(tmp_path: Path) -> None:
    """Two makes started together must not unpack into one folder: the second waits, and gives up at its deadline."""
    spawn = multiprocessing.get_context("spawn")
    held, let_go = spawn.Event(), spawn.Event()
    lock = tmp_path / "a b" / "lock"
    told: list[str] = []
    first = spawn.Process(target=hold_until, args=(lock, held, let_go))
    first.start()
    try:
        assert held.wait(60)
        with pytest.raises(TimeoutError), exclusive(lock, 0.3, lambda: told.append("waiting")):
            pytest.fail("the lock was given twice")
        assert told == ["waiting"]
        let_go.set()
        with exclusive(lock, 30.0, lambda: None):
            pass
    finally:
        let_go.set()
        first.join(30)
    assert first.exitcode == 0


def test_lock_outlives_a_killed_set_up(tmp_path: Path) -> None:
    """pip goes on for a while after its parent was killed; nobody else may begin before it ends."""
    lock = tmp_path / "lock"
    with exclusive(lock, 1.0, lambda: None) as lock_fd:
        pip = subprocess.Popen(["sleep", "60"], pass_fds=(lock_fd,))
    try:
        with pytest.raises(TimeoutError), exclusive(lock, 0.3, lambda: None):
            pytest.fail("the lock was free while pip ran")
    finally:
        pip.kill()
        pip.wait(10)
    with exclusive(lock, 10.0, lambda: None):
        pass


def dry_run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_make_serve_in_a_path_with_a_space(tmp_path: Path) -> None:
    """Paths with spaces break recipes that name absolute paths or forget quotes."""
    folder = tmp_path / "a b"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    lines = dry_run(folder, "-n", "serve", "CONFIG=my configs/x y.yaml", "PORT=9001").splitlines()
    assert lines[-1].endswith('.venv/bin/triptych serve "my configs/x y.yaml" --port "9001"')
    assert lines[-1].startswith("exec ")
    order = [next(i for i, line in enumerate(lines) if word in line) for word in ("install_env", "triptych serve")]
    assert order == sorted(order)
    assert str(folder) not in "\n".join(lines)


@pytest.mark.parametrize("target", ["test", "check", "serve"])
def test_make_installs_first(target: str, tmp_path: Path) -> None:
    """Each target works in a fresh clone."""
    folder = tmp_path / "a b"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    assert "tools/install_environment.py" in dry_run(folder, "-n", target)


def test_make_help_names_every_target() -> None:
    """A target that help does not show is not found."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    shown = dry_run(ROOT, "help")
    assert [target for target in phony.group(1).split() if f"make {target} " not in shown] == []


def import_torchvision(answers: multiprocessing.SimpleQueue[tuple[bool, str]]) -> None:
    """Body of a process: whether torch was there before anyone asked, and what torchvision computes."""
    torch_came_by_itself = "torch" in sys.modules
    import torch
    from torchvision.transforms.v2 import functional

    resized = functional.resize(torch.zeros(3, 8, 8), [4, 4])
    answers.put((torch_came_by_itself, str(tuple(resized.shape))))


def test_torchvision_in_a_spawned_process() -> None:
    """Engines and workers are spawned afresh: what was done to the parent does not help them."""
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.SimpleQueue()
    process = spawn.Process(target=import_torchvision, args=(answers,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert answers.get() == (False, "(3, 4, 4)")


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_shim_costs_nothing_at_start() -> None:
    """Neither the start of an interpreter nor asking whether torchvision is installed may import torch."""
    assert (
        python("import sys; print('triptych_torchvision_shim' in sys.modules, 'torch' in sys.modules)") == "True False"
    )
    code = "import sys, importlib.util as u; print(bool(u.find_spec('torchvision')), 'torch' in sys.modules)"
    assert python(code) == "True False"


def test_shim_defines_only_what_is_missing() -> None:
    """Beside a build that has brought its operators it must do nothing: a second definition is an error in torch."""
    shim = "import torch, triptych_torchvision_shim as shim\n"
    assert (
        python(shim + "print(shim.define_missing_schemas([]), shim.define_missing_schemas([]))") == "['nms', 'qnms'] []"
    )
    own = "library = torch.library.Library('torchvision', 'FRAGMENT')\nlibrary.define('nms' + shim.SIGNATURE)\n"
    assert python(shim + own + "print(shim.define_missing_schemas([]))") == "['qnms']"


def test_shim_is_the_reason_that_torchvision_imports() -> None:
    """Without the finder the import fails on this lock; were it not so, the shim could go."""
    removed = "import sys, triptych_torchvision_shim as shim\nsys.meta_path = [finder for finder in sys.meta_path "
    removed += "if not isinstance(finder, shim.TorchvisionFinder)]\n"
    attempt = "try:\n    import torchvision\nexcept RuntimeError as error:\n    print(error)"
    assert "torchvision::nms" in python(removed + attempt)
