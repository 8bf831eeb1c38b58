"""Import hook that lets torchvision be imported beside a torch build its compiled operators were not made for.

The main index carries torchvision as a CUDA build. Beside a CPU torch its shared library cannot be loaded; operators
then have no schema, and `torchvision/_meta_registrations.py`, which attaches shape functions to two of them, fails the
whole import. Image and video transforms need none of these operators, only that their schemas exist.

A `.pth` file of the same name imports this module when any interpreter starts, engine and worker processes included. So
start-up may cost nothing: torch is imported only when torchvision is. Where torchvision's own library loads, it has
registered its operators itself and this module adds nothing.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as in `typing`, whose import would be paid by every interpreter
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# Those that torchvision's Python code registers a shape function for whether or not its library was loaded.
OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

_libraries: list[object] = []  # a torch Library withdraws its schemas when it is collected


class TorchvisionFinder:
    """Meta-path finder that answers for the name `torchvision` alone, with the usual spec and a prepared loader."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Spec from the other finders, whose loader defines missing schemas first; None for any other name."""
        if name != "torchvision":
            return None
        for finder in sys.meta_path:
            if isinstance(finder, TorchvisionFinder):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                _prepare_loader(spec)
                return spec
        return None


def _prepare_loader(spec: ModuleSpec) -> None:
    """Make the loader define the schemas before it runs the package; a mere look-up of the spec imports nothing."""
    loader = spec.loader
    if loader is None:
        return
    execute = loader.exec_module

    def define_then_execute(module: ModuleType) -> None:
        define_missing_schemas(list(spec.submodule_search_locations or ()))
        execute(module)

    loader.exec_module = define_then_execute  # type: ignore[method-assign]


def define_missing_schemas(folders: Sequence[str]) -> list[str]:
    """Define the operator schemas that torchvision's own library, looked for in `folders`, does not bring.

    Returns the names that were defined: none beside a matching build, or when called again.
    """
    import torch

    _load_own_operators(folders)
    missing = [name for name in OPERATORS if not hasattr(torch.ops.torchvision, name)]
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in missing:
            library.define(name + SIGNATURE)  # type: ignore[no-untyped-call]
        _libraries.append(library)
    return missing


def _load_own_operators(folders: Sequence[str]) -> None:
    """Load `_C` as torchvision itself is about to, so that schemas it brings are not defined twice."""
    from importlib.machinery import EXTENSION_SUFFIXES
    from pathlib import Path

    import torch

    for library in (Path(folder) / f"_C{suffix}" for folder in folders for suffix in EXTENSION_SUFFIXES):
        if library.exists():
            try:
                torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
            except OSError:  # built for another torch: the case this module is for
                return


def install() -> None:
    """Put the finder first on the meta path, once."""
    if not any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())


install()
