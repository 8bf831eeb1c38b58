"""Reads a published checkpoint: its JSON files, and of its weights only the tensors that are asked for."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

_INDEX = "model.safetensors.index.json"
_SAMPLE_BYTES = 4096

JsonDict = dict[str, object]


class CheckpointError(ValueError):
    """The checkpoint is absent, incomplete or not what its configuration says."""


class Checkpoint:
    """One model directory in the layout of the Hugging Face hub, safetensors weights in one file or several."""

    def __init__(self, model: str | Path) -> None:
        """`model` is a directory, or the name of a repository on the hub, of which JSON files are fetched at once
        and weight files when their tensors are asked for. Raises CheckpointError."""
        self._repository = None if Path(model).is_dir() else str(model)
        self.directory = Path(model) if self._repository is None else _download(self._repository, ["*.json"])

    @cached_property
    def config(self) -> JsonDict:
        """Content of config.json."""
        config = self.read_json("config.json")
        if config is None:
            raise CheckpointError(f"{self.directory} has no config.json")
        return config

    def read_json(self, name: str) -> JsonDict | None:
        """Content of a JSON file of the checkpoint; None when there is no such file."""
        path = self.directory / name
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not an object")
        return content

    @cached_property
    def _file_of(self) -> Mapping[str, str]:
        """Weight file of every tensor, by the tensor's name."""
        index = self.read_json(_INDEX)
        if index is not None:
            weight_map = index.get("weight_map")
            if not isinstance(weight_map, dict):
                raise CheckpointError(f"{self.directory / _INDEX} has no weight_map")
            return weight_map
        if self._repository is not None:
            self.directory = _download(self._repository, ["*.json", "*.safetensors"])
        files = sorted(self.directory.glob("*.safetensors"))
        if not files:
            raise CheckpointError(f"{self.directory} has no safetensors weights")
        return {name: file.name for file in files for name in _open_weights(file).keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118

    def names(self, prefixes: Iterable[str]) -> tuple[str, ...]:
        """Names of the tensors that start with one of `prefixes`, sorted."""
        starts = tuple(prefixes)
        return tuple(sorted(name for name in self._file_of if name.startswith(starts)))

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The named tensors one by one, on the host, as stored. Raises CheckpointError when a file lacks one."""
        for file, file_names in self._by_file(names).items():
            weights = _open_weights(self._weight_file(file))
            for name in file_names:
                try:
                    yield name, weights.get_tensor(name)  # type: ignore[no-untyped-call]
                except SafetensorError as error:
                    raise CheckpointError(f"{file} does not hold {name}, though the index says so: {error}") from error

    def digest(self, names: Iterable[str], settings: Mapping[str, object]) -> str:
        """64 hex digits that identify these tensors and settings: the same on every host that has the same files.

        Cheap: of each tensor it takes name, type, shape and the first 4 KiB, which differ between trainings.
        """
        state = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for file, file_names in sorted(self._by_file(names).items()):
            path = self._weight_file(file)
            with path.open("rb") as stream:
                header_bytes = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(header_bytes))
                for name in sorted(file_names):
                    if name not in header:
                        raise CheckpointError(f"{file} does not hold {name}, though the index says so")
                    entry = header[name]
                    begin, end = entry["data_offsets"]
                    stream.seek(8 + header_bytes + begin)
                    sample = stream.read(min(end - begin, _SAMPLE_BYTES))
                    state.update(f"{name} {entry['dtype']} {entry['shape']} {len(sample)} ".encode() + sample)
        return state.hexdigest()

    def _by_file(self, names: Iterable[str]) -> dict[str, list[str]]:
        files: defaultdict[str, list[str]] = defaultdict(list)
        for name in names:
            if name not in self._file_of:
                raise CheckpointError(f"{self.directory} has no tensor {name}")
            files[self._file_of[name]].append(name)
        return files

    def _weight_file(self, name: str) -> Path:
        path = self.directory / name
        if not path.is_file() and self._repository is not None:
            path = _download(self._repository, [name]) / name
        if not path.is_file():
            raise CheckpointError(f"{self.directory} lacks the weight file {name} that its index names")
        return path


def _open_weights(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def _download(repository: str, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repository!r} is neither a directory here nor a repository that can be fetched: {error}"
        ) from error
