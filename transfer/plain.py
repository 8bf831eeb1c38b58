"""Frozen dataclasses to plain data (dict, list, str, int, ...) and strictly back, driven by their type hints.

Supported hints: bool, int, float, str, bytes, None, Literal, Enum (by value), tuple, unions, and nested dataclasses
(at most one per union). Nothing is coerced: a bool is not an int, an int is a float only where no int is allowed.
"""

import dataclasses
import enum
import functools
import math
import types
import typing
from collections.abc import Callable, Hashable
from typing import Any, Literal, TypeVar, Union, cast

from transfer.errors import ProtocolError

T = TypeVar("T")
Reader = Callable[[object, str], Any]


def to_plain(value: object) -> Any:
    """Plain data for a message or a field of one; tuples become lists, dataclasses become dicts by field name."""
    if isinstance(value, enum.Enum):
        return value.value
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    assert dataclasses.is_dataclass(value), f"{type(value).__name__} is not a message type"
    return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}


def from_plain(message_type: type[T], data: object) -> T:
    """The message that `to_plain` made `data` from.

    Raises ProtocolError naming the field: wrong type, unknown field, missing field, or a value the message refuses.
    """
    reader = reader_of(cast(Hashable, message_type))
    return cast(T, reader(data, message_type.__name__))


@functools.cache
def reader_of(hint: Any) -> Reader:
    """The function that checks and converts plain data for one type hint."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return _literal_reader(arguments)
    if origin in (Union, types.UnionType):
        return _union_reader(arguments)
    if origin is tuple:
        return _tuple_reader(arguments)
    if hint is float:
        return _read_float
    if hint in (bool, int, str, bytes, type(None)):
        return _scalar_reader(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_reader(hint)
    assert dataclasses.is_dataclass(hint), f"no reader for {hint!r}"
    return _dataclass_reader(cast(type, hint))


def _refuse(path: str, wanted: str, data: object) -> ProtocolError:
    return ProtocolError(f"{path}: expected {wanted}, got {type(data).__name__}")


def _scalar_reader(kind: type) -> Reader:
    def read(data: object, path: str) -> object:
        if type(data) is not kind:
            raise _refuse(path, kind.__name__, data)
        return data

    return read


def _read_float(data: object, path: str) -> float:
    if type(data) is int:
        data = float(data)
    if type(data) is not float:
        raise _refuse(path, "float", data)
    if not math.isfinite(data):
        raise ProtocolError(f"{path}: expected a finite number, got {data}")
    return data


def _literal_reader(choices: tuple[object, ...]) -> Reader:
    def read(data: object, path: str) -> object:
        for choice in choices:
            if type(choice) is type(data) and choice == data:
                return choice
        raise _refuse(path, f"one of {choices}", data)

    return read


def _enum_reader(kind: type[enum.Enum]) -> Reader:
    by_value = {(type(member.value), member.value): member for member in kind}

    def read(data: object, path: str) -> enum.Enum:
        if type(data) not in (str, int) or (type(data), data) not in by_value:
            raise _refuse(path, f"a value of {kind.__name__}", data)
        return by_value[type(data), data]

    return read


def _union_reader(members: tuple[Any, ...]) -> Reader:
    # Exact types first, so that an int stays an int where both int and float are allowed.
    exact = {member: reader_of(member) for member in members if member in (bool, int, float, str, bytes, type(None))}
    rest = [reader_of(member) for member in members if member not in exact]
    assert len(rest) <= 1, f"ambiguous union {members}"

    def read(data: object, path: str) -> object:
        reader = exact.get(type(data))
        if reader is None and type(data) is int:
            reader = exact.get(float)
        if reader is None and rest:
            reader = rest[0]
        if reader is None:
            raise _refuse(path, " or ".join(member.__name__ for member in members), data)
        return reader(data, path)

    return read


def _tuple_reader(arguments: tuple[Any, ...]) -> Reader:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        item_reader = reader_of(arguments[0])

        def read_many(data: object, path: str) -> tuple[object, ...]:
            if type(data) is not list:
                raise _refuse(path, "list", data)
            return tuple(item_reader(item, f"{path}[{index}]") for index, item in enumerate(data))

        return read_many
    readers = [reader_of(argument) for argument in arguments]

    def read_fixed(data: object, path: str) -> tuple[object, ...]:
        if type(data) is not list or len(data) != len(readers):
            raise _refuse(path, f"list of {len(readers)}", data)
        return tuple(
            reader(item, f"{path}[{index}]") for index, (reader, item) in enumerate(zip(readers, data, strict=True))
        )

    return read_fixed


def _dataclass_reader(kind: type) -> Reader:
    hints = typing.get_type_hints(kind)
    readers = {field.name: reader_of(hints[field.name]) for field in dataclasses.fields(kind)}

    def read(data: object, path: str) -> object:
        if type(data) is not dict:
            raise _refuse(path, "map", data)
        if data.keys() != readers.keys():
            unknown, missing = sorted(map(str, data.keys() - readers.keys())), sorted(readers.keys() - data.keys())
            raise ProtocolError(f"{path}: unknown fields {unknown}, missing fields {missing}")
        values = {name: reader(data[name], f"{path}.{name}") for name, reader in readers.items()}
        try:
            return kind(**values)
        except ValueError as error:
            raise ProtocolError(f"{path}: {error}") from error

    return read
