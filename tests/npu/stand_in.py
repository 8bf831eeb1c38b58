"""Makes the real torch_npu importable on a machine without an NPU: its wheel, and empty stand-ins for CANN.

The package links to libraries that only an Ascend host has. All it takes from them are plain C functions, so libraries
of functions that return 0 satisfy the loader. Operators then have their true schemas and shape rules.
"""

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

VERSION = "2.13.0"
_CANN_LIBRARIES = ("ascendcl", "hccl", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel")
_SYSTEM_LIBRARIES = ("libc", "libm", "libgcc_s", "libstdc++", "libpthread", "libdl", "librt")
_LOOKED_UP_BY_NAME = re.compile(r"(acl[a-z]*|Hccl)[A-Z][A-Za-z0-9]+")
_CHIP = "Ascend910B4"


def stand_in_environment(directory: Path) -> dict[str, str]:
    """Environment for a child process in which `import torch_npu` works. Downloads the wheel on the first call."""
    site, stubs = directory / "site", directory / "stubs"
    if not (stubs / "complete").exists():
        _unpack_wheel(directory / "wheels", site)
        _build_stubs(site, stubs)
        (stubs / "complete").touch()
    paths = {"LD_LIBRARY_PATH": stubs, "PYTHONPATH": site}
    joined = {name: os.pathsep.join(filter(None, (str(path), os.environ.get(name)))) for name, path in paths.items()}
    return os.environ | joined | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}


def _unpack_wheel(wheels: Path, site: Path) -> None:
    requirement = f"torch-npu=={VERSION}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", requirement, "-d", str(wheels)]
    subprocess.run(command, check=True, timeout=240)
    (wheel,) = wheels.glob("torch_npu-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)


def _build_stubs(site: Path, stubs: Path) -> None:
    """Compile one library of every missing function, and give it the name of each CANN library."""
    package = site / "torch_npu"
    libraries = [path for path in (*package.glob("lib/*.so"), *package.glob("_C*.so")) if "atb" not in path.name]
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    present = [*libraries, *(Path(spec.origin).parent / "lib").glob("*.so*")]
    for name in _SYSTEM_LIBRARIES:
        present += [*Path("/lib").glob(f"*/{name}.so.*"), *Path("/usr/lib").glob(f"*/{name}.so.*")]
    provided = set().union(*(_symbols(path, "--defined-only") for path in present))
    needed = set().union(*(_symbols(path, "--undefined-only") for path in libraries))
    strings = subprocess.run(
        ["strings", str(package / "lib" / "libtorch_npu.so")], capture_output=True, text=True, check=True, timeout=60
    )
    needed |= {word for word in strings.stdout.split() if _LOOKED_UP_BY_NAME.fullmatch(word)}
    missing = sorted(name for name in needed - provided if not name.startswith(("Py", "_Py")))
    stubs.mkdir(parents=True, exist_ok=True)
    source = stubs / "stub.c"
    functions = [f"long {name}(void) {{ return 0; }}" for name in missing if name != "aclrtGetSocName"]
    functions.append(f'const char* aclrtGetSocName(void) {{ return "{_CHIP}"; }}')
    source.write_text("\n".join(functions) + "\n")
    built = stubs / "stub.so"
    subprocess.run(["gcc", "-w", "-shared", "-fPIC", "-o", str(built), str(source)], check=True, timeout=120)
    for name in _CANN_LIBRARIES:
        (stubs / f"lib{name}.so").write_bytes(built.read_bytes())


def _symbols(library: Path, which: str) -> set[str]:
    """Names of the dynamic symbols of a library; weak undefined ones, which may stay so, are left out."""
    listing = subprocess.run(["nm", "-D", which, str(library)], capture_output=True, text=True, check=False, timeout=60)
    rows = (line.split() for line in listing.stdout.splitlines())
    return {row[-1].split("@")[0] for row in rows if len(row) >= 2 and row[-2] != "w"}
