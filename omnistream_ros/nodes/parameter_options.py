# SPDX-License-Identifier: Apache-2.0
"""One ROS parameter as a dataclass field: declared, read, checked, and refused in words."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    ParameterType,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

_TYPES = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
    tuple: ParameterType.PARAMETER_STRING_ARRAY,
}
_TYPE_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number with a decimal point (1.0, not 1)",
    str: "a text",
    tuple: 'a list of texts ([""] for none)',
}


class Change(enum.Enum):
    """When a parameter may change."""

    NEVER = "read only: set it when the node is started"
    UNCONFIGURED = "takes effect at configure; may change only while the node is unconfigured"
    ANY_TIME = "may change at any time; the next image uses it"


@dataclasses.dataclass(frozen=True)
class _Option:
    description: str
    change: Change
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    check: Callable[[Any], object] | None
    own: bool
    only_with: tuple[str, tuple[str, ...]] | None


def option(
    default: Any,
    description: str,
    *,
    change: Change,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    check: Callable[[Any], object] | None = None,
    own: bool = False,
    only_with: tuple[str, tuple[str, ...]] | None = None,
) -> Any:
    """One parameter: a dataclass field whose type is that of ``default``.

    ``check`` gets the value and raises ``ValueError`` with the reason if it cannot be used.
    ``own``: each member of the group has one, too.
    ``only_with``: name and values of another parameter without which nothing looks at this one.
    """
    record = _Option(description, change, low, high, choices, check, own, only_with)
    return dataclasses.field(default=default, metadata={"option": record})


def declare(node: Node, name: str, field: dataclasses.Field, default: Any) -> Any:
    """Declare the parameter of a field on a node.

    Returns:
        Its value: the default, or what the user set at start.

    Raises:
        ValueError, rclpy.exceptions.ParameterException: that cannot be; `reason_of` has words.
    """
    kind, record = type(field.default), field.metadata["option"]
    descriptor = ParameterDescriptor(
        type=_TYPES[kind],
        description=record.description,
        read_only=record.change is Change.NEVER,
        additional_constraints=_constraints(record),
    )
    if record.low is not None and kind is int:
        descriptor.integer_range = [IntegerRange(from_value=record.low, to_value=record.high)]
    elif record.low is not None:
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=float(record.low), to_value=float(record.high))
        ]
    parameter = node.declare_parameter(name, to_ros(default), descriptor)
    value = from_ros(field, parameter.value)
    check_value(field, value)
    return value


def _constraints(record: _Option) -> str:
    choices = f"One of: {', '.join(record.choices)}. " if record.choices else ""
    return f"{choices}{record.change.value[0].upper()}{record.change.value[1:]}."


def from_ros(field: dataclasses.Field, value: Any) -> Any:
    """The value as the dataclass holds it. ROS knows no empty list, so '' stands for no entry."""
    if isinstance(field.default, tuple):
        return tuple(entry for entry in value or () if entry != "")
    return value


def to_ros(value: Any) -> Any:
    """The other way round."""
    return (list(value) or [""]) if isinstance(value, tuple) else value


def check_value(field: dataclasses.Field, value: Any) -> None:
    """ValueError, with the reason, for a value that the parameter of a field cannot have."""
    record = field.metadata["option"]
    if type(value) is not type(field.default):
        raise ValueError(f"must be {_TYPE_WORDS[type(field.default)]}, got {value!r}")
    if record.choices and value not in record.choices:
        raise ValueError(f"must be one of {', '.join(record.choices)}, got {value!r}")
    # Written so that NaN, which no comparison finds, is refused as well.
    if record.low is not None and not record.low <= value <= record.high:
        raise ValueError(f"must lie between {record.low} and {record.high}, got {value}")
    if record.check is not None:
        record.check(value)


def reason_of(node: Node, name: str, field: dataclasses.Field, error: Exception) -> str:
    """Our own words instead of rclpy's for a wrong type or range."""
    if isinstance(error, ValueError):
        return str(error)
    record = field.metadata["option"]
    limits = f" between {record.low} and {record.high}" if record.low is not None else ""
    given = overrides(node).get(name)
    got = f", got {given.value!r}" if given is not None else f" ({error})"
    return f"must be {_TYPE_WORDS[type(field.default)]}{limits}{got}"


def overrides(node: Node) -> dict[str, Parameter]:
    """What the user set at start; rclpy has no public name for it."""
    return getattr(node, "_parameter_overrides", {})
