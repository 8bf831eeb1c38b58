"""Reading a deployment file into settings, with errors that name the field and say what to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from configs.settings import TriptychConfig

_CHECKPOINT_FILE = "config.json"
_BUILDER = "cluster.app:build_app"


class ConfigError(ValueError):
    """A deployment file that cannot be used; the message names every field at fault."""


@dataclass(frozen=True)
class ServiceFile:
    """What a file says of one service: its settings, and Ray's autoscaling policy of the application if it has one."""

    config: TriptychConfig
    autoscaling_policy: Any


def load_config(path: str | Path, *, model: str | None = None) -> TriptychConfig:
    """Read and validate a YAML deployment file.

    Args:
        path: the file. A relative `model` in it that exists next to the working folder is used as it is.
        model: takes the place of the file's `model`, when given.

    Raises:
        ConfigError: the file is missing, is not YAML, has unknown or bad fields, or names a model folder
            that is not there.
    """
    content = _read(Path(path))
    if model is not None:
        content["model"] = model
    return parse_config(content, source=str(path))


def load_service(path: str | Path) -> ServiceFile:
    """Read a deployment file, or the Serve config file of one such service, whose settings stand in `args`.

    Raises:
        ConfigError: as for `load_config`; or a Serve config file has not exactly one application of this kind.
    """
    content = _read(Path(path))
    if "applications" not in content:
        config = parse_config(content, source=str(path))
        return ServiceFile(config, config.autoscaling_policy)
    applications = content["applications"] if isinstance(content["applications"], list) else []
    ours = [item for item in applications if isinstance(item, dict) and item.get("import_path") == _BUILDER]
    if len(ours) != 1 or not isinstance(ours[0].get("args"), dict):
        raise ConfigError(
            f"{path} must have one application with 'import_path: {_BUILDER}' and its settings in 'args'; "
            f"it has {len(ours)}"
        )
    config = parse_config(ours[0]["args"], source=str(path))
    if config.autoscaling_policy is not None:
        raise ConfigError(f"{path} cannot be used:\n  args.autoscaling_policy: belongs beside import_path")
    policy = ours[0].get("autoscaling_policy")
    if isinstance(policy, dict) and not {".", ":"} & {*str(policy.get("policy_function", ":"))}:
        raise ConfigError(
            f"{path} cannot be used:\n  autoscaling_policy.policy_function: Ray reads this one itself and knows no "
            "short names; give the import path, for example cluster.autoscaling.balanced:BalancedStagesPolicy"
        )
    return ServiceFile(config, policy)


def parse_config(content: Mapping[str, Any], *, source: str = "configuration") -> TriptychConfig:
    """Validate settings given as a mapping, as `serve run` and Serve config files pass them.

    Raises:
        ConfigError: as for `load_config`.
    """
    try:
        config = TriptychConfig.model_validate(dict(content))
    except ValidationError as error:
        lines = [f"  {line}" for line in map(_explain, error.errors())]
        raise ConfigError("\n".join([f"{source} cannot be used:", *lines])) from error
    _check_model_folder(config.model, source)
    return config


def _read(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold a mapping of settings, beginning with 'model: ...'")
    return content


def _check_model_folder(model: str, source: str) -> None:
    """Refuse a path that is not a checkpoint; a bare 'organisation/name' is left to the model hub."""
    folder = Path(model)
    looks_like_path = model.startswith((".", "/", "~")) or folder.exists() or model.count("/") != 1
    if looks_like_path and not (folder / _CHECKPOINT_FILE).is_file():
        raise ConfigError(
            f"{source} cannot be used:\n  model: {model!r} holds no {_CHECKPOINT_FILE}; "
            "give the folder of a Hugging Face checkpoint (the demo model is examples/demo_model/checkpoint)"
        )


def _explain(error: Mapping[str, Any]) -> str:
    """One validation error as 'field: what is wrong', with the nearest known name for a typing slip."""
    location = [part for part in error["loc"] if isinstance(part, str | int)]
    field = ".".join(str(part) for part in location) or "settings"
    if error["type"] == "extra_forbidden":
        known = _known_fields(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known))}"
        return f"{field}: unknown setting; {hint}"
    if error["type"] == "missing":
        return f"{field}: required setting is missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{field}: {message}"


def _known_fields(path: list[str | int]) -> list[str]:
    """Field names of the section at `path`."""
    section: type[BaseModel] = TriptychConfig
    for part in path:
        annotation = section.model_fields[str(part)].annotation if str(part) in section.model_fields else None
        options = getattr(annotation, "__args__", (annotation,))
        nested = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
        if not nested:
            return []
        section = nested[0]
    return list(section.model_fields)
