# SPDX-License-Identifier: Apache-2.0
"""Parameters as a typed dataclass: declared once, checked in one place, refused with the reason.

Each field of a frozen dataclass, written with `option`, is one ROS parameter::

    @dataclass(frozen=True)
    class Parameters:
        window: int = option(16, "Frames kept.", low=1, high=512, change=Change.UNCONFIGURED)

    parameters = ParameterSet(node, Parameters, phase=lambda: node.phase)
    parameters.values.window

Some fields may differ between the members of a group, such as the cameras of a node: each member
``left`` then has a parameter ``left.resolution`` of its own, which starts as the common one.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from rcl_interfaces.msg import SetParametersResult
from rclpy.exceptions import ParameterException
from rclpy.node import Node
from rclpy.parameter import Parameter

from omnistream_ros.nodes.lifecycle import Phase
from omnistream_ros.nodes.parameter_options import (
    Change,
    check_value,
    declare,
    from_ros,
    overrides,
    reason_of,
    to_ros,
)
from omnistream_ros.nodes.process import RefusedToStartError

Values = TypeVar("Values")

# What rclpy and the middleware declare or read themselves.
_FOREIGN = ("use_sim_time", "start_type_description_service", "qos_overrides")


class ParameterSet(Generic[Values]):
    """Declares the fields of ``cls`` on ``node`` and keeps ``values`` up to date.

    Args:
        members: the names in the group, from the values; a change of them is a change of what is
            declared.

    Raises:
        RefusedToStartError: an override given at start has a wrong type, range or value.
    """

    def __init__(
        self,
        node: Node,
        cls: type[Values],
        phase: Callable[[], Phase],
        members: Callable[[Values], Sequence[str]] = lambda values: (),
    ) -> None:
        self._node = node
        self._phase = phase
        self._members = members
        self._fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        self._own = [f for f in self._fields.values() if f.metadata["option"].own]
        self._values_of: dict[str, Values] = {}
        self.values: Values = cls(**self._declare_all("", self._fields.values()))
        self._meet_members()
        node.add_on_set_parameters_callback(self._refuse)
        node.add_post_set_parameters_callback(self._apply)
        self._warn_of_unknown()

    def of(self, member: str) -> Values:
        """The values for one member of the group; the common ones for the name ""."""
        return self._values_of[member] if member else self.values

    def unused(self) -> list[str]:
        """What was set though nothing looks at it, in words; it would be accepted and ignored."""
        told = []
        for field in self._fields.values():
            if field.metadata["option"].only_with is None:
                continue
            other, wanted = field.metadata["option"].only_with
            common = getattr(self.values, field.name)
            everybody = [self.values, *self._values_of.values()]
            idle = []
            if common != field.default and all(getattr(v, other) not in wanted for v in everybody):
                idle.append("")
            for member, own in self._values_of.items():
                if getattr(own, field.name) != common and getattr(own, other) not in wanted:
                    idle.append(f"{member}.")
            told += [
                f"parameter '{prefix}{field.name}' is set and not used: it needs "
                f"'{prefix}{other}' set to {' or '.join(wanted)}"
                for prefix in idle
            ]
        return told

    def _declare_all(
        self, prefix: str, fields: Iterable[dataclasses.Field], defaults: object = None
    ) -> dict[str, Any]:
        refused, values = [], {}
        for field in fields:
            name = prefix + field.name
            default = field.default if defaults is None else getattr(defaults, field.name)
            try:
                values[field.name] = declare(self._node, name, field, default)
            except (ParameterException, ValueError) as error:
                refused.append(f"parameter '{name}': {reason_of(self._node, name, field, error)}")
        if refused:
            raise RefusedToStartError("; ".join(refused))
        return values

    def _meet_members(self) -> None:
        """Declare the parameters of new members, forget those of members that are gone."""
        present = self._members(self.values)
        for member in set(self._values_of) - set(present):
            del self._values_of[member]
            for field in self._own:
                self._node.undeclare_parameter(f"{member}.{field.name}")
        for member in present:
            if member not in self._values_of:
                own = self._declare_all(f"{member}.", self._own, self.values)
                self._values_of[member] = dataclasses.replace(self.values, **own)  # type: ignore[type-var]

    def _refuse(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """Validate only; nothing is applied before all parameters of the call were accepted."""
        for parameter in parameters:
            field = self._fields.get(self._split(parameter.name)[1])
            if field is None:
                continue
            change = field.metadata["option"].change
            if change is Change.UNCONFIGURED and self._phase() is not Phase.UNCONFIGURED:
                return _refusal(
                    f"'{parameter.name}' {change.value}, and the node is {self._phase().value}: "
                    "deactivate and clean up first"
                )
            try:
                check_value(field, from_ros(field, parameter.value))
            except ValueError as error:
                return _refusal(f"parameter '{parameter.name}': {error}")
        return SetParametersResult(successful=True)

    def _apply(self, parameters: Sequence[Parameter]) -> None:
        """What was set for all is set for each member as well, then what was set for one."""
        changes: dict[str, dict[str, Any]] = {}
        for parameter in parameters:
            member, name = self._split(parameter.name)
            if name in self._fields:
                value = from_ros(self._fields[name], parameter.value)
                changes.setdefault(member, {})[name] = value
        common = changes.pop("", {})
        if common:
            self.values = dataclasses.replace(self.values, **common)  # type: ignore[type-var]
            for member, values in self._values_of.items():
                self._values_of[member] = dataclasses.replace(values, **common)  # type: ignore[type-var]
            self._show(common, except_for=changes)
        for member, own in changes.items():
            self._values_of[member] = dataclasses.replace(self._values_of[member], **own)  # type: ignore[type-var]
        if common:  # declaring parameters calls back, too
            self._meet_members()

    def _show(self, common: dict[str, Any], except_for: dict[str, dict[str, Any]]) -> None:
        """Let the members' own parameters say what holds for them now."""
        for member in self._values_of:
            for field in self._own:
                if field.name in common and field.name not in except_for.get(member, {}):
                    name, value = f"{member}.{field.name}", to_ros(common[field.name])
                    self._node.set_parameters([Parameter(name, value=value)])

    def _split(self, name: str) -> tuple[str, str]:
        """Member ("" for none) and field of a parameter's name."""
        member, dot, own = name.partition(".")
        return (member, own) if dot and member in self._values_of else ("", name)

    def _warn_of_unknown(self) -> None:
        """A misspelt parameter would otherwise be accepted and ignored."""
        own = [f"{member}.{field.name}" for member in self._values_of for field in self._own]
        for name in overrides(self._node):
            if self._node.has_parameter(name) or name.startswith(_FOREIGN):
                continue
            hint = self._no_member(name)
            if not hint and (near := difflib.get_close_matches(name, [*self._fields, *own], n=1)):
                hint = f"; did you mean '{near[0]}'?"
            self._node.get_logger().warning(f"parameter '{name}' is not known and is ignored{hint}")

    def _no_member(self, name: str) -> str:
        """What is wrong with a name that would be right for another member, or for all of them."""
        member, dot, field = name.partition(".")
        if not dot or field not in self._fields:
            return ""
        if not self._fields[field].metadata["option"].own:
            return f": there is only one '{field}' for all"
        present = ", ".join(self._values_of)
        return f": there is no '{member}'" + (f", but {present}" if present else "")


def _refusal(reason: str) -> SetParametersResult:
    return SetParametersResult(successful=False, reason=reason)
