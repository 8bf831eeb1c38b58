"""The structure of the code base as checks over parsed source: who imports whom, where each library has its home.

A rule is a function from one module to its violations, each one line `path:line: what is wrong`. The tables say what is
allowed; `tests/unit/test_architecture.py` runs every rule over every module.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PACKAGES = ("cluster", "encoder_workers", "llm_workers", "transfer", "npu_kernels", "configs")
MAX_LINES = 300

_WORKER_IMPORTS = frozenset({"transfer", "npu_kernels", "configs"})
# What each package may import of the others.
DIRECTIONS: dict[str, frozenset[str]] = {
    "cluster": _WORKER_IMPORTS | {"encoder_workers", "llm_workers"},
    "encoder_workers": _WORKER_IMPORTS,
    "llm_workers": _WORKER_IMPORTS,
    "transfer": frozenset({"configs"}),
    "npu_kernels": frozenset({"configs"}),
    "configs": frozenset(),
}
# Folders of the repository that no package may need: an installation does not have them.
NOT_INSTALLED = frozenset({"tests", "tools", "benchmarks", "examples"})

# The package or the file that a library may be imported in.
HOMES: dict[str, tuple[str, ...]] = {
    "ray": ("cluster",),
    "fastapi": ("cluster",),
    "starlette": ("cluster",),
    "uvicorn": ("cluster",),
    "opentelemetry": ("cluster",),
    "prometheus_client": ("cluster",),
    "rich": ("cluster",),
    "vllm": ("llm_workers",),
    "torch_npu": ("npu_kernels/ascend.py",),
    "zmq": ("transfer",),
    "PIL": ("encoder_workers",),
    "librosa": ("encoder_workers",),
    "soundfile": ("encoder_workers",),
    "av": ("encoder_workers",),
    "yaml": ("configs",),
}
ENVIRONMENT_NAMES = frozenset({"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"})
PICKLING_MODULES = frozenset({"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"})
# Methods that pickle behind an innocent name: pyzmq's object calls, torch's collectives of objects, torch's files.
PICKLING_METHODS = frozenset(
    {
        "send_pyobj",
        "recv_pyobj",
        "all_gather_object",
        "gather_object",
        "scatter_object_list",
        "broadcast_object_list",
        "send_object_list",
        "recv_object_list",
    }
)
BROAD_EXCEPTIONS = frozenset({"Exception", "BaseException"})


@dataclass(frozen=True)
class Module:
    """One parsed source file.

    Attributes:
        path: relative to the repository root.
    """

    path: PurePosixPath
    source: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.path.parts[0]

    def at(self, line: int, message: str) -> str:
        """A violation in this file."""
        return f"{self.path}:{line}: {message}"


def parse(path: str, source: str) -> Module:
    """A module from its text; raises SyntaxError."""
    return Module(PurePosixPath(path), source, ast.parse(source, filename=path))


@dataclass(frozen=True)
class Elsewhere:
    """Leave to import a library away from its home.

    Attributes:
        place: a file or a folder, relative to the repository root.
        names: the library or the modules of it that may be imported there.
        reason: why it cannot be at home.
    """

    place: str
    names: tuple[str, ...]
    reason: str

    def covers(self, module: Module, name: str) -> bool:
        """Whether importing `name` in `module` is what this allows."""
        return module.path.is_relative_to(self.place) and any(
            f"{name}.".startswith(f"{allowed}.") for allowed in self.names
        )


def read_modules(root: Path) -> list[Module]:
    """Every module of the six packages below `root`."""
    files = sorted(file for package in PACKAGES for file in (root / package).rglob("*.py"))
    return [parse(file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")) for file in files]


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything imported, also inside functions and by `import_module("name")`.

    A name imported from a module is given with it: `from os import environ` is `os.environ`.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _is_import_call(node) and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if node.level == 0:
        return node.module or ""
    folder = module.path.parts[:-1]
    return ".".join([*folder[: len(folder) - node.level + 1], *filter(None, [node.module])])


def _is_import_call(node: ast.Call) -> bool:
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    return name in {"import_module", "__import__"}


def check_directions(module: Module) -> list[str]:
    """Imports between the packages run one way."""
    allowed = DIRECTIONS[module.package] | {module.package}
    found = []
    for line, name in imports(module):
        target = name.partition(".")[0]
        if (target in PACKAGES and target not in allowed) or target in NOT_INSTALLED:
            found.append(module.at(line, f"{module.package} must not import {target}"))
    return found


def check_libraries(module: Module, exceptions: Sequence[Elsewhere]) -> list[str]:
    """Each third-party library is imported in its home only, or where one of `exceptions` allows it."""
    found = []
    for line, name in imports(module):
        library = name.partition(".")[0]
        homes = HOMES.get(library)
        if homes is None or any(module.path.is_relative_to(home) for home in homes):
            continue
        if not any(exception.covers(module, name) for exception in exceptions):
            found.append(module.at(line, f"{name}: {library} belongs in {', '.join(homes)}"))
    return found


def check_environment(module: Module) -> list[str]:
    """Only `configs` reads or sets environment variables."""
    if module.package == "configs":
        return []
    named = [line for line, name in imports(module) if name.removeprefix("os.") in ENVIRONMENT_NAMES]
    used = [
        node.lineno
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute)
        and node.attr in ENVIRONMENT_NAMES
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    ]
    return [module.at(line, "environment variables belong in configs") for line in sorted({*named, *used})]


def check_no_pickle(module: Module) -> list[str]:
    """Nothing in `transfer` can run code that a peer sent: no pickle, under whatever name."""
    if module.package != "transfer":
        return []
    found = [
        module.at(line, f"{name} pickles; the wire carries MessagePack only")
        for line, name in imports(module)
        if name.partition(".")[0] in PICKLING_MODULES or name.rpartition(".")[2] in PICKLING_METHODS
    ]
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and (node.attr in PICKLING_METHODS or _is_torch_file_call(node)):
            found.append(module.at(node.lineno, f"{node.attr} pickles; the wire carries MessagePack only"))
    return found


def _is_torch_file_call(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id == "torch" and node.attr in {"load", "save"}


def check_docstring(module: Module) -> list[str]:
    """Every module opens with a sentence that states its job."""
    first_paragraph = (ast.get_docstring(module.tree) or "").partition("\n\n")[0].strip()
    return [] if first_paragraph.endswith((".", ":")) else [module.at(1, "no opening sentence that states its job")]


def check_length(module: Module, exceptions: dict[str, str]) -> list[str]:
    """A file is read in one sitting: longer ones are in `exceptions`, each with the reason."""
    num_lines = len(module.source.splitlines())
    if num_lines <= MAX_LINES or str(module.path) in exceptions:
        return []
    return [module.at(num_lines, f"{num_lines} lines, more than {MAX_LINES}, and no reason is given")]


def check_exports(module: Module) -> list[str]:
    """`__all__` of a package names exactly what its `__init__.py` offers; one that is empty needs none."""
    if module.path.name != "__init__.py":
        return []
    defined = {name for node in module.tree.body for name in _public_definitions(node)}
    imported = {name for node in module.tree.body for name in _own_imports(module, node)}
    used = {node.id for node in ast.walk(module.tree) if isinstance(node, ast.Name)}
    declared = _declared_exports(module.tree)
    lazy = any(isinstance(node, ast.FunctionDef) and node.name == "__getattr__" for node in module.tree.body)
    # A name imported and used right here may be meant for this file only.
    missing = sorted((defined | imported - used) - declared)
    unknown = [] if lazy else sorted(declared - defined - imported)
    return [
        *(module.at(1, f"__all__ lacks {name}") for name in missing),
        *(module.at(1, f"__all__ names {name}, which is not here") for name in unknown),
    ]


def _own_imports(module: Module, node: ast.stmt) -> list[str]:
    """Names that a top-level statement imports from our own packages."""
    if isinstance(node, ast.ImportFrom) and _absolute(module, node).partition(".")[0] in PACKAGES:
        return [alias.asname or alias.name for alias in node.names]
    return []


def _public_definitions(node: ast.stmt) -> list[str]:
    """Public names that a top-level statement defines."""
    names: list[str] = []
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        names = [node.name]
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def _declared_exports(tree: ast.Module) -> set[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return set(ast.literal_eval(node.value))
    return set()


def check_broad_catches(module: Module, edges: dict[str, str]) -> list[str]:
    """Everything is caught only where a process ends: in a file of `edges`, or in a handler that raises on."""
    if str(module.path) in edges:
        return []
    found = []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not isinstance(node.body[-1], ast.Raise):
            found.append(module.at(node.lineno, "broad except away from a process edge"))
        if isinstance(node, ast.Call) and _is_suppress(node) and any(_is_broad(argument) for argument in node.args):
            found.append(module.at(node.lineno, "broad suppress away from a process edge"))
    return found


def _is_broad(caught: ast.expr | None) -> bool:
    if caught is None:
        return True
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(isinstance(name, ast.Name) and name.id in BROAD_EXCEPTIONS for name in names)


def _is_suppress(node: ast.Call) -> bool:
    called = node.func
    return (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) == "suppress"
