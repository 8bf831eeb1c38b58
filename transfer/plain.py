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
Reader = Callable[[object], Any]
_AS_THEY_ARE = frozenset({bool, int, float, str, bytes, type(None)})


class _Refused(Exception):
    """Where data is not what its hint says; the path is put together on the way out, since most data is right."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.path = ""
        self.reason = reason


def to_plain(value: object) -> Any:
    """Plain data for a message or a field of one; tuples become lists, dataclasses become dicts by field name."""
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    return {name: to_plain(getattr(value, name)) for name in _names(cast(Hashable, type(value)))}


@functools.cache
def _names(kind: Any) -> tuple[str, ...]:
    assert dataclasses.is_dataclass(kind), f"{kind.__name__} is not a message type"
    return tuple(field.name for field in dataclasses.fields(kind))


def from_plain(message_type: type[T], data: object) -> T:
    """The message that `to_plain` made `data` from.

    Raises ProtocolError naming the field: wrong type, unknown field, missing field, or a value the message refuses.
    """
    try:
        return cast(T, reader_of(cast(Hashable, message_type))(data))
    except _Refused as error:
        raise ProtocolError(f"{message_type.__name__}{error.path}: {error.reason}") from error.__cause__


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
    if hint in _AS_THEY_ARE:
        return _scalar_reader(hint)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_reader(hint)
    assert dataclasses.is_dataclass(hint), f"no reader for {hint!r}"
    return _dataclass_reader(cast(type, hint))


def _refuse(wanted: str, data: object) -> _Refused:
    return _Refused(f"expected {wanted}, got {type(data).__name__}")


def _scalar_reader(kind: type) -> Reader:
    def read(data: object) -> object:
        if type(data) is not kind:
            raise _refuse(kind.__name__, data)
        return data

    return read


def _read_float(data: object) -> float:
    if type(data) is int:
        data = float(data)
    if type(data) is not float:
        raise _refuse("float", data)
    if not math.isfinite(data):
        raise _Refused(f"expected a finite number, got {data}")
    return data


def _literal_reader(choices: tuple[object, ...]) -> Reader:
    def read(data: object) -> object:
        for choice in choices:
            if type(choice) is type(data) and choice == data:
                return choice
        raise _refuse(f"one of {choices}", data)

    return read


def _enum_reader(kind: type[enum.Enum]) -> Reader:
    by_value = {(type(member.value), member.value): member for member in kind}

    def read(data: object) -> enum.Enum:
        if type(data) not in (str, int) or (type(data), data) not in by_value:
            raise _refuse(f"a value of {kind.__name__}", data)
        return by_value[type(data), data]

    return read


def _union_reader(members: tuple[Any, ...]) -> Reader:
    # Exact types first, so that an int stays an int where both int and float are allowed.
    exact = {member: reader_of(member) for member in members if member in _AS_THEY_ARE}
    rest = [reader_of(member) for member in members if member not in exact]
    assert len(rest) <= 1, f"ambiguous union {members}"

    def read(data: object) -> object:
        reader = exact.get(type(data))
        if reader is None and type(data) is int:
            reader = exact.get(float)
        if reader is None and rest:
            reader = rest[0]
        if reader is None:
            raise _refuse(" or ".join(member.__name__ for member in members), data)
        return reader(data)

    return read


def _tuple_reader(arguments: tuple[Any, ...]) -> Reader:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        item_reader = reader_of(arguments[0])

        def read_many(data: object) -> tuple[object, ...]:
            if type(data) is not list:
                raise _refuse("list", data)
            return _read_each(data, [item_reader] * len(data))

        return read_many
    readers = [reader_of(argument) for argument in arguments]

    def read_fixed(data: object) -> tuple[object, ...]:
        if type(data) is not list or len(data) != len(readers):
            raise _refuse(f"list of {len(readers)}", data)
        return _read_each(data, readers)

    return read_fixed


def _read_each(data: list[object], readers: list[Reader]) -> tuple[object, ...]:
    values: list[object] = []
    try:
        for item, reader in zip(data, readers, strict=True):
            values.append(reader(item))
    except _Refused as error:
        error.path = f"[{len(values)}]{error.path}"
        raise
    return tuple(values)


def _dataclass_reader(kind: type) -> Reader:
    hints = typing.get_type_hints(kind)
    readers = {name: reader_of(hints[name]) for name in _names(cast(Hashable, kind))}

    def read(data: object) -> object:
        if type(data) is not dict:
            raise _refuse("map", data)
        if data.keys() != readers.keys():
            unknown, missing = sorted(map(str, data.keys() - readers.keys())), sorted(readers.keys() - data.keys())
            raise _Refused(f"unknown fields {unknown}, missing fields {missing}")
        values, name = {}, ""
        try:
            for name, reader in readers.items():
                values[name] = reader(data[name])
        except _Refused as error:
            error.path = f".{name}{error.path}"
            raise
        try:
            return kind(**values)
        except ValueError as error:
            raise _Refused(str(error)) from error

    return read
