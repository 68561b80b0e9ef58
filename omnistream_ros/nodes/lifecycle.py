# SPDX-License-Identifier: Apache-2.0
"""Base of the lifecycle nodes: one path up, one path down, and no exception lost on the way.

rclpy swallows an exception inside a transition without a log, leaves lifecycle publishers switched
on after an error, and has no transition out of ``active`` for a fault. Here every exception is
logged and becomes a transition result, and a fault while active goes through error processing back
to ``unconfigured``, from where ``configure`` starts afresh.
"""

from __future__ import annotations

import enum
import threading
import traceback
from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

_SUCCESS = TransitionCallbackReturn.SUCCESS
_FAILURE = TransitionCallbackReturn.FAILURE
_ERROR = TransitionCallbackReturn.ERROR


class Phase(enum.Enum):
    """The primary states of a lifecycle node."""

    UNCONFIGURED = "unconfigured"
    INACTIVE = "inactive"
    ACTIVE = "active"
    FINALIZED = "finalized"


class TransitionRefusedError(Exception):
    """What was asked for cannot work as things are; the message says what to change.

    The transition returns FAILURE: the node stays in the state it came from.
    """


class ManagedNode(LifecycleNode):
    """A lifecycle node written as two pairs of methods.

    Subclasses override :meth:`set_up` / :meth:`tear_down` (configure / cleanup) and :meth:`start` /
    :meth:`stop` (activate / deactivate). The two going down must be safe to call at any time and
    more than once: they also serve shutdown, error processing and a way up that broke half-way.
    All four run in the executor's thread.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.phase = Phase.UNCONFIGURED
        self.ending = False  # the process is about to end
        self.last_error = ""  # text only: a kept exception would keep all memory of its frames
        self._fault_lock = threading.Lock()
        self._fault = ""
        self._fault_guard = self.create_guard_condition(self._leave_active)

    # --- for subclasses ---

    def set_up(self) -> None:
        """Acquire everything that costs time or memory. Raise ``TransitionRefusedError`` if not."""

    def start(self) -> None:
        """Begin to work."""

    def stop(self) -> None:
        """Stop working; afterwards no thread of the node touches what ``set_up`` made."""

    def tear_down(self) -> None:
        """Give back everything that ``set_up`` acquired."""

    @property
    def faulted(self) -> bool:
        """Whether the node is on its way out because of :meth:`report_fault`."""
        return bool(self._fault)

    def report_fault(self, error: BaseException) -> None:
        """Log an exception and, when active, send the node to error processing. Any thread."""
        text = _one_line(error)
        trace = "".join(traceback.format_exception(error))
        self.get_logger().error(f"fault while {self.phase.value}: {text}\n{trace}")
        self.last_error = text
        with self._fault_lock:
            if self._fault or self.phase is not Phase.ACTIVE:
                return
            self._fault = text
        self._fault_guard.trigger()

    def bring_up(self) -> bool:
        """Configure and activate, as ``autostart`` does. Returns whether the node is active now."""
        return self.trigger_configure() == _SUCCESS and self.trigger_activate() == _SUCCESS

    # --- transitions ---

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        result = self._go_up("configure", self.set_up, back=self.tear_down)
        if result is _SUCCESS:
            result = super().on_configure(state)
            self.phase = Phase.INACTIVE
            self.last_error = ""
        return result

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._fault = ""
        # Publishers first: the first frame may be through before this method returns.
        super().on_activate(state)
        self.phase = Phase.ACTIVE
        result = self._go_up("activate", self.start, back=self.stop)
        if result is not _SUCCESS:
            self.phase = Phase.INACTIVE
            super().on_deactivate(state)
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self._fault:
            return _ERROR
        if not self._go_down(self.stop):
            return _ERROR
        self.phase = Phase.INACTIVE
        self.get_logger().info("deactivated")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        if not self._go_down(self.tear_down):
            return _ERROR
        self.phase = Phase.UNCONFIGURED
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        clean = self._go_down(self.stop, self.tear_down)
        self.phase = Phase.FINALIZED
        return _SUCCESS if clean else _ERROR

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        clean = self._go_down(self.stop)
        # A lifecycle publisher stays switched on when deactivate fails.
        super().on_deactivate(state)
        clean = self._go_down(self.tear_down) and clean
        with self._fault_lock:
            self._fault = ""
        if not clean:
            self.phase = Phase.FINALIZED
            self.get_logger().fatal("could not clean up after an error; restart the process")
            return _FAILURE
        self.phase = Phase.UNCONFIGURED
        self.get_logger().warning(
            f"recovered to unconfigured after: {self.last_error}; configure starts again"
        )
        return _SUCCESS

    def destroy_node(self) -> None:
        """Stop and free everything, from whatever state, then destroy the ROS entities."""
        self.ending = True
        self._go_down(self.stop, self.tear_down)
        self.phase = Phase.FINALIZED
        super().destroy_node()

    # --- inner workings ---

    def _go_up(
        self, name: str, step: Callable[[], None], back: Callable[[], None]
    ) -> TransitionCallbackReturn:
        try:
            step()
            return _SUCCESS
        except TransitionRefusedError as refusal:
            self.last_error = str(refusal)
            self.get_logger().error(f"cannot {name}: {refusal}")
            return _FAILURE if self._go_down(back) else _ERROR
        except Exception as error:
            self.last_error = _one_line(error)
            self.get_logger().error(f"{name} failed: {traceback.format_exc()}")
            self._go_down(back)
            return _ERROR

    def _go_down(self, *steps: Callable[[], None]) -> bool:
        """Run all steps, even after one failed. Returns whether none did."""
        clean = True
        for step in steps:
            try:
                step()
            except Exception as error:
                clean = False
                self.last_error = _one_line(error)
                self.get_logger().error(f"{step.__name__} failed: {traceback.format_exc()}")
        return clean

    def _leave_active(self) -> None:
        if self._fault and self.phase is Phase.ACTIVE:
            self.trigger_deactivate()  # sees the fault and goes to error processing


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
