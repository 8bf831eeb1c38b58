"""Takes typed values out of a checkpoint's JSON, so that a wrong or missing one is named at start-up."""

from __future__ import annotations

from collections.abc import Mapping

from encoder_workers.checkpoint import CheckpointError


class ConfigReader:
    """One JSON object with the path at which it was found."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self._values = values
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def is_list(self, key: str) -> bool:
        """Whether the value is a list rather than a single one."""
        return isinstance(self._values.get(key), list)

    def section(self, key: str) -> ConfigReader:
        """A nested object. Raises CheckpointError when it is absent."""
        value = self._values.get(key)
        if not isinstance(value, dict):
            raise CheckpointError(f"{self.where} has no section {key!r}")
        return ConfigReader(value, f"{self.where}: {key}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; `default` when absent or null, which without a default is a CheckpointError."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(f"{self.where}: {key} must be an integer, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """As `integer`, for any number."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{self.where}: {key} must be a number, not {value!r}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """As `integer`, for true or false."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise CheckpointError(f"{self.where}: {key} must be true or false, not {value!r}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """As `integer`, for a string."""
        value = self._values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise CheckpointError(f"{self.where}: {key} must be a string, not {value!r}")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self._values.get(key)
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise CheckpointError(f"{self.where}: {key} must be a list of integers, not {value!r}")
        return tuple(value)

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """A list of numbers."""
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, list) or not all(type(item) in (int, float) for item in value):
            raise CheckpointError(f"{self.where}: {key} must be a list of numbers, not {value!r}")
        return tuple(float(item) for item in value)
