"""docs/configuration.md names every setting with its type, default and description, as the settings themselves do.

The page's tables are written by this file: `python tests/unit/configs/test_configuration_page.py`.
"""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Any, Literal, Union

import pytest
from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import configs
from configs import TriptychConfig
from configs.base import Settings
from configs.sizes import ByteSize, PixelCount

PAGE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"
_BLOCK = re.compile(r"<!-- fields of (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
# By the validator that reads them.
_UNITS = (
    (typing.get_args(ByteSize)[1], (("GiB", 2**30), ("MiB", 2**20))),
    (typing.get_args(PixelCount)[1], (("MP", 1_000_000),)),
)


def sections() -> dict[str, type[BaseModel]]:
    """The top level and every section below it, by class name."""
    found: dict[str, type[BaseModel]] = {}
    unseen: list[type[BaseModel]] = [TriptychConfig]
    while unseen:
        section = unseen.pop()
        found[section.__name__] = section
        for field in section.model_fields.values():
            unseen += [option for option in _options(field.annotation) if _is_section(option)]
    return found


def table(section: type[BaseModel]) -> str:
    """The Markdown table of one section."""
    lines = ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}.{name} has no description"
        cells = (f"`{name}`", _type_name(field), _default(field), field.description)
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def write_tables(page: str) -> str:
    """The page with all its tables as they should be."""
    known = sections()
    return _BLOCK.sub(lambda m: f"<!-- fields of {m[1]} -->\n{table(known[m[1]])}<!-- end -->", page)


def _options(annotation: Any) -> list[Any]:
    """The alternatives of a union, or the annotation alone."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return list(typing.get_args(annotation))
    return [annotation]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _type_name(field: FieldInfo) -> str:
    names = [_name(option) for option in _options(field.annotation) if option is not type(None)]
    if any(isinstance(item, BeforeValidator) for item in field.metadata):
        names = ["size"]
    return " or ".join(names) + "".join(f", {limit}" for limit in _limits(field))


def _name(annotation: Any) -> str:
    if _is_section(annotation):
        return f"[section](#{annotation.__name__.lower()})"
    origin = typing.get_origin(annotation)
    arguments = [argument for argument in typing.get_args(annotation) if argument is not Ellipsis]
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is dict:
        return f"table of {_name(arguments[0])} to {_name(arguments[1])}"
    if origin is tuple:
        return f"list of {_name(arguments[0])}"
    if origin is typing.Annotated:
        return "size" if any(isinstance(item, BeforeValidator) for item in arguments) else _name(arguments[0])
    return {str: "text", int: "integer", float: "number", bool: "yes or no", Any: "anything", Path: "file"}[annotation]


def _limits(field: FieldInfo) -> list[str]:
    """Bounds of the value, in its units; "> 0" of every size is left out where a higher bound stands beside it."""
    found = {name: getattr(item, name) for item in field.metadata for name in _SIGNS if hasattr(item, name)}
    if "ge" in found and "gt" in found:
        del found["gt" if found["ge"] > found["gt"] else "ge"]
    return [f"{_SIGNS[name]} {_amount(value, field)}" for name, value in found.items()]


def _amount(value: object, field: FieldInfo) -> str:
    """A number as a file would have it: of a size in the largest unit of which it is a multiple."""
    for unit, size in next((units for kind, units in _UNITS if kind in field.metadata), ()):
        if isinstance(value, int) and value >= size and value % size == 0:
            return f"{value // size} {unit}"
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    if value is None:
        return "absent"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, bool):
        return "no" if not value else "yes"
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`"
    if isinstance(value, dict):
        return "`{" + ", ".join(f"{key}: {amount}" for key, amount in value.items()) + "}`"
    return f"`{value}`" if isinstance(value, float) else f"`{_amount(value, field)}`"


@pytest.mark.parametrize("name", sorted(sections()))
def test_every_section_is_on_the_page(name: str) -> None:
    blocks = dict(_BLOCK.findall(PAGE.read_text(encoding="utf-8")))
    assert name in blocks, f"docs/configuration.md needs: <!-- fields of {name} --> ... <!-- end -->"
    assert blocks[name] == table(sections()[name]), "run: python tests/unit/configs/test_configuration_page.py"


def test_the_page_has_no_section_that_is_gone() -> None:
    assert {name for name, _ in _BLOCK.findall(PAGE.read_text(encoding="utf-8"))} == set(sections())


def test_every_public_section_is_reachable() -> None:
    """A section that no field leads to would be documented nowhere; `StageConfig` is the base of three."""
    public = {getattr(configs, name) for name in configs.__all__}
    classes = {item for item in public if isinstance(item, type) and issubclass(item, Settings)}
    bases = {base for section in sections().values() for base in section.__mro__}
    assert classes <= bases


if __name__ == "__main__":
    PAGE.write_text(write_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
