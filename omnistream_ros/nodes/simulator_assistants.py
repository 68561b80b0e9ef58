# SPDX-License-Identifier: Apache-2.0
"""What is asked of the other nodes between two attempts in the simulator."""

from __future__ import annotations

import threading
import time
from typing import Any

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.client import Client
from rclpy.node import Node
from rclpy.task import Future
from std_srvs.srv import Trigger

from omnistream_ros.action.controller import READS_NO_INSTRUCTION
from omnistream_ros.nodes.process import RefusedToStartError
from omnistream_ros.nodes.simulator_parameters import SimulatorParameters
from omnistream_ros.srv import SetInstruction

_POLL_S = 0.01
_ASK_AGAIN_S = 2.0


class Assistants:
    """Perception and action node, as far as they are there; called from the simulator's thread."""

    def __init__(self, node: Node, wish: SimulatorParameters, stopped: threading.Event) -> None:
        self._patience_s = wish.patience
        self._stopped = stopped
        self._reset: Client | None = None
        self._state: Client | None = None
        self._change: Client | None = None
        self._instruct: Client | None = None
        if wish.perception:
            self._reset = node.create_client(Trigger, f"{wish.perception}/reset")
        if wish.action:
            self._change = node.create_client(ChangeState, f"{wish.action}/change_state")
            self._instruct = node.create_client(SetInstruction, f"{wish.action}/set_instruction")
            # Last: clients are announced in order, so that its answer proves that theirs arrive.
            self._state = node.create_client(GetState, f"{wish.action}/get_state")

    def wait(self) -> None:
        """Until they are ready to work.

        Raises:
            RefusedToStartError: they are not there, or do not become ready.
        """
        for client in (self._reset, self._state, self._change, self._instruct):
            if client is not None:
                self._await(client.service_is_ready, client.srv_name)
        # They load their models meanwhile, and refuse until it is done.
        if self._reset is not None:
            self._until_done(self._reset, Trigger.Request(), "reset")
        if self._state is not None and self._change is not None:
            self._until_inactive(self._state, self._change)

    def begin(self, instruction: str) -> None:
        """A new attempt: a new stream, an active action node that knows what to do."""
        if self._reset is not None:
            self._demand(self._reset, Trigger.Request(), "reset")
        if self._change is not None:
            self._demand(self._change, _transition(Transition.TRANSITION_ACTIVATE), "activate")
        if self._instruct is not None:
            request = SetInstruction.Request(instruction=instruction)
            self._demand(self._instruct, request, "take the instruction", READS_NO_INSTRUCTION)

    def end(self) -> None:
        """The attempt is over: nobody commands while the table is reset."""
        if self._change is not None and not self._stopped.is_set():
            self._demand(self._change, _transition(Transition.TRANSITION_DEACTIVATE), "deactivate")

    def _until_inactive(self, state: Client, change: Client) -> None:
        """Lead a lifecycle node to where the attempts begin, whatever brings it up otherwise."""
        ways = {
            State.PRIMARY_STATE_UNCONFIGURED: Transition.TRANSITION_CONFIGURE,
            State.PRIMARY_STATE_ACTIVE: Transition.TRANSITION_DEACTIVATE,
        }
        give_up, refusals = time.monotonic() + self._patience_s, 0
        while not self._stopped.is_set():
            answer = self._ask(state, GetState.Request())
            if answer is None or answer.current_state.id == State.PRIMARY_STATE_INACTIVE:
                return
            way = ways.get(answer.current_state.id)
            if way is not None:
                done = self._call(change, _transition(way))
                refusals += done is not None and not done.success
            # Once may be somebody else who was quicker.
            if time.monotonic() > give_up or refusals > 1:
                raise RefusedToStartError(
                    f"{change.srv_name}: the node stays {answer.current_state.label}; its log says "
                    "why"
                )
            self._stopped.wait(0.2)

    def _until_done(self, client: Client, request: Any, what: str) -> None:
        give_up = time.monotonic() + self._patience_s
        while not self._stopped.is_set():
            answer = self._ask(client, request)
            if answer is None or answer.success:
                return
            if time.monotonic() > give_up:
                words = getattr(answer, "message", "") or "it refuses"
                raise RefusedToStartError(f"{client.srv_name} cannot {what}: {words}")
            self._stopped.wait(0.5)

    def _demand(self, client: Client, request: Any, what: str, excuse: str = "") -> None:
        """Call; refused is an error, unless with the words of `excuse`."""
        answer = self._call(client, request)
        if answer is not None and not answer.success:
            words = getattr(answer, "message", "") or "it refuses"
            if words == excuse:
                return
            raise RefusedToStartError(f"{client.srv_name} cannot {what}: {words}")

    def _call(self, client: Client, request: Any) -> Any:
        """The answer; None when the simulator was stopped meanwhile."""
        future = client.call_async(request)
        self._await(future.done, client.srv_name)
        return None if self._stopped.is_set() else future.result()

    def _ask(self, client: Client, request: Any) -> Any:
        """The same for what may be asked twice, as it must be of a service just found.

        It is ready for its client before it has heard of that client's reader; what it answers
        until then is lost (DDS discovery).
        """
        futures: list[Future] = []
        again = 0.0

        def answered() -> bool:
            nonlocal again
            if time.monotonic() >= again:
                futures.append(client.call_async(request))
                again = time.monotonic() + _ASK_AGAIN_S
            return any(future.done() for future in futures)

        self._await(answered, client.srv_name)
        return next((f.result() for f in futures if f.done()), None)

    def _await(self, ready: Any, name: str) -> None:
        give_up = time.monotonic() + self._patience_s
        while not ready() and not self._stopped.wait(_POLL_S):
            if time.monotonic() > give_up:
                raise RefusedToStartError(
                    f"nobody answers on {name} within {self._patience_s:.0f} s: is that node "
                    "running, and in the same ROS_DOMAIN_ID?"
                )


def _transition(number: int) -> ChangeState.Request:
    return ChangeState.Request(transition=Transition(id=number))
