"""What in a spec lies beyond a limit of its field: the ranges that the API server enforces.

Called by the operator, which names it in a condition: an object that was stored before a limit was
made is served on, as far as that is safe, and not deleted. Reads the rules from the fields' types
(`trimwheel_api.values`), so a limit has one home. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from trimwheel_api.errors import SpecInvalid
from trimwheel_api.values import AtMost, Rule


def beyond(spec: BaseModel, where: str = "spec") -> Iterator[SpecInvalid]:
    """Every value of a spec that breaks a limit, in the order of the fields."""
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if value is not None:
            limits = _limits((field.annotation, *field.metadata))
            yield from _broken(value, limits, f"{where}.{field.alias or name}")


def _broken(value: Any, limits: list[Rule | AtMost], where: str) -> Iterator[SpecInvalid]:
    for limit in limits:
        if not limit.holds(value):
            remedy = limit.remedy if isinstance(limit, Rule) else ""
            yield SpecInvalid(where, limit.message, value, remedy[:1].upper() + remedy[1:])
            break
    if isinstance(value, BaseModel):
        yield from beyond(value, where)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _broken(item, [], f"{where}[{index}]")


def _limits(parts: tuple[Any, ...]) -> list[Rule | AtMost]:
    """The limits among a field's annotations, those of an optional value included."""
    found: list[Rule | AtMost] = []
    for part in parts:
        if isinstance(part, Rule | AtMost):
            found.append(part)
        elif getattr(part, "__metadata__", None) or type(None) in get_args(part):
            found += _limits((*get_args(part), *getattr(part, "__metadata__", ())))
    return found
