# SPDX-License-Identifier: Apache-2.0
"""Parameters as a typed dataclass: declared once, checked in one place, refused with the reason.

Each field of a frozen dataclass, written with :func:`option`, is one ROS parameter::

    @dataclass(frozen=True)
    class Parameters:
        window: int = option(16, "Frames kept.", low=1, high=512, change=Change.UNCONFIGURED)

    parameters = ParameterSet(node, Parameters, phase=lambda: node.phase)
    parameters.values.window
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    ParameterType,
    SetParametersResult,
)
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from omnistream_ros.nodes.lifecycle import Phase
from omnistream_ros.nodes.process import RefusedToStartError

Values = TypeVar("Values")

# What rclpy and the middleware declare or read themselves.
_FOREIGN = ("use_sim_time", "start_type_description_service", "qos_overrides")
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


def option(
    default: Any,
    description: str,
    *,
    change: Change,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    check: Callable[[Any], object] | None = None,
) -> Any:
    """One parameter: a dataclass field whose type is that of ``default``.

    ``check`` gets the value and raises ``ValueError`` with the reason if it cannot be used.
    """
    record = _Option(description, change, low, high, choices, check)
    return dataclasses.field(default=default, metadata={"option": record})


class ParameterSet(Generic[Values]):
    """Declares the fields of ``cls`` on ``node`` and keeps ``values`` up to date.

    Raises:
        RefusedToStartError: an override given at start has a wrong type, range or value.
    """

    def __init__(self, node: Node, cls: type[Values], phase: Callable[[], Phase]) -> None:
        self._cls = cls
        self._phase = phase
        self._fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        refused = []
        values = {}
        for field in self._fields.values():
            try:
                values[field.name] = _declare(node, field)
            except (ParameterException, ValueError) as error:
                refused.append(f"parameter '{field.name}': {_reason(node, field, error)}")
        if refused:
            raise RefusedToStartError("; ".join(refused))
        self.values: Values = cls(**values)
        node.add_on_set_parameters_callback(self._refuse)
        node.add_post_set_parameters_callback(self._apply)
        self._warn_of_unknown(node)

    def _refuse(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """Validate only; nothing is applied before all parameters of the call were accepted."""
        for parameter in parameters:
            field = self._fields.get(parameter.name)
            if field is None:
                continue
            change = field.metadata["option"].change
            if change is Change.UNCONFIGURED and self._phase() is not Phase.UNCONFIGURED:
                return _refusal(
                    f"'{field.name}' {change.value}, and the node is {self._phase().value}: "
                    "deactivate and clean up first"
                )
            try:
                _check(field, _from_ros(field, parameter.value))
            except ValueError as error:
                return _refusal(f"parameter '{field.name}': {error}")
        return SetParametersResult(successful=True)

    def _apply(self, parameters: Sequence[Parameter]) -> None:
        ours = {
            p.name: _from_ros(self._fields[p.name], p.value)
            for p in parameters
            if p.name in self._fields
        }
        if ours:
            self.values = dataclasses.replace(self.values, **ours)  # type: ignore[type-var]

    def _warn_of_unknown(self, node: Node) -> None:
        """A misspelt parameter would otherwise be accepted and ignored."""
        for name in _overrides(node):
            if node.has_parameter(name) or name.startswith(_FOREIGN):
                continue
            near = difflib.get_close_matches(name, self._fields, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            node.get_logger().warning(f"parameter '{name}' is not known and is ignored{hint}")


def _declare(node: Node, field: dataclasses.Field) -> Any:
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
    default: Any = field.default
    if kind is tuple:
        default = list(default) or [""]
    parameter = node.declare_parameter(field.name, default, descriptor)
    value = _from_ros(field, parameter.value)
    _check(field, value)
    return value


def _constraints(record: _Option) -> str:
    choices = f"One of: {', '.join(record.choices)}. " if record.choices else ""
    return f"{choices}{record.change.value[0].upper()}{record.change.value[1:]}."


def _from_ros(field: dataclasses.Field, value: Any) -> Any:
    """The value as the dataclass holds it. ROS knows no empty list, so '' stands for no entry."""
    if isinstance(field.default, tuple):
        return tuple(entry for entry in value or () if entry != "")
    return value


def _check(field: dataclasses.Field, value: Any) -> None:
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


def _reason(node: Node, field: dataclasses.Field, error: Exception) -> str:
    """Our own words instead of rclpy's for a wrong type or range."""
    if isinstance(error, ValueError):
        return str(error)
    record = field.metadata["option"]
    limits = f" between {record.low} and {record.high}" if record.low is not None else ""
    given = _overrides(node).get(field.name)
    got = f", got {given.value!r}" if given is not None else f" ({error})"
    return f"must be {_TYPE_WORDS[type(field.default)]}{limits}{got}"


def _overrides(node: Node) -> dict[str, Parameter]:
    """What the user set at start; rclpy has no public name for it."""
    return getattr(node, "_parameter_overrides", {})


def _refusal(reason: str) -> SetParametersResult:
    return SetParametersResult(successful=False, reason=reason)
