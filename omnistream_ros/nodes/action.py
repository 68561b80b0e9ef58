# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node ``omnistream_action``: features, instruction and joint states in, actions out.

configure   opens the policy and checks it, makes the publishers
activate    subscribes, starts the policy's thread and the control loop; nothing moves before every
            input is there and fresh, and nothing reaches the robot while `dry_run` is set
deactivate  a safe last command; then nothing is commanded any more
cleanup     gives the policy back
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.time import Time
from std_msgs.msg import Bool, Header
from std_srvs.srv import Trigger

from omnistream_ros.action.chunk import Chunk
from omnistream_ros.action.controller import Controller, Decision
from omnistream_ros.action.drive import Command
from omnistream_ros.action.limits import Limits
from omnistream_ros.action.policy import Policy, PolicyError
from omnistream_ros.action.safety import Drop, EmergencyStop, Reason, State
from omnistream_ros.model.sentence_encoder import SentenceEncoderError, installed_encoder
from omnistream_ros.msg import ActionStatus
from omnistream_ros.nodes import named_values
from omnistream_ros.nodes.action_diagnostics import ActionDiagnostics
from omnistream_ros.nodes.action_inputs import ActionInputs
from omnistream_ros.nodes.action_messages import (
    REASONS,
    STATES,
    age_or_nan,
    chunk_message,
    counted,
)
from omnistream_ros.nodes.action_outputs import ActionOutputs
from omnistream_ros.nodes.action_parameters import ActionParameters
from omnistream_ros.nodes.action_policies import (
    make_limits,
    make_policy,
    robot_names,
    stream_topics,
)
from omnistream_ros.nodes.action_worker import Embed, PolicyWorker
from omnistream_ros.nodes.lifecycle import ManagedNode, Phase, TransitionRefusedError
from omnistream_ros.nodes.parameters import ParameterSet
from omnistream_ros.nodes.process import run
from omnistream_ros.srv import SetInstruction

NODE_NAME = "omnistream_action"


class ActionNode(ManagedNode):
    """See the module; topics, parameters and messages are in docs/action_node.md."""

    def __init__(self) -> None:
        super().__init__(NODE_NAME)
        self._policy: Policy | None = None
        self._limits: Limits | None = None
        self._embed: Embed | None = None
        self._streams: dict[str, str] = {}
        self._robot_names: dict[str, str] = {}
        self._outputs: ActionOutputs | None = None
        self._controller: Controller | None = None
        self._inputs: ActionInputs | None = None
        self._worker: PolicyWorker | None = None
        self._control_timer: Any = None
        self._dry_run = True
        self._told = Decision()
        # The emergency stop works in every state, and outlives all of them.
        self._stop = EmergencyStop()
        self._options = ParameterSet(self, ActionParameters, phase=lambda: self.phase)
        reliable = QoSProfile(depth=10, reliability=QoSReliabilityPolicy.RELIABLE)
        self.create_subscription(Bool, "~/emergency_stop", self._on_stop_button, reliable)
        self.create_service(Trigger, "~/trigger_emergency_stop", self._on_stop_service)
        self.create_service(Trigger, "~/clear_emergency_stop", self._on_clear_stop)
        self.create_service(SetInstruction, "~/set_instruction", self._on_set_instruction)
        # Steady: a simulation on pause must not silence the node.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(self.parameters.status_period, self._publish_status, clock=self._steady)
        self._diagnostics = ActionDiagnostics(
            self, self.parameters.diagnostics_period, self._status
        )
        if self.parameters.autostart:
            # As the first callback: loading must not keep the process from answering signals.
            self.create_guard_condition(self._bring_itself_up).trigger()

    @property
    def parameters(self) -> ActionParameters:
        """The parameters as they are now."""
        return self._options.values

    # --- the four steps of the lifecycle ---

    def set_up(self) -> None:
        wish = self.parameters
        if wish.watchdog_timeout * wish.control_rate < 2.0:
            raise TransitionRefusedError(
                f"parameter 'watchdog_timeout' of {wish.watchdog_timeout:g} s is less than two "
                f"turns of a control loop at {wish.control_rate:g} Hz: the robot would never move"
            )
        try:
            self._policy = policy = make_policy(wish)
            self._limits = make_limits(policy.spec, wish)
            self._streams = stream_topics(policy.needs, wish)
            joints = [policy.spec.names[column] for column in policy.spec.joints]
            self._robot_names = robot_names([*dict.fromkeys([*policy.needs.joints, *joints])], wish)
            self._embed = _sentence_embedding() if policy.needs.embedding else None
        except (ValueError, PolicyError, SentenceEncoderError) as error:
            raise TransitionRefusedError(
                f"{error}. Correct the parameters and configure again"
            ) from error
        self._outputs = ActionOutputs(
            self, policy.spec, self._robot_names, wish.joint_output, 1.0 / wish.control_rate
        )
        self.get_logger().info(
            f"policy {policy.name} ({policy.sha256[:12]}): {policy.spec.space.value} of "
            f"{', '.join(policy.spec.names)}, {policy.spec.horizon} actions of {policy.spec.dt:g} s"
        )

    def start(self) -> None:
        assert self._policy is not None
        assert self._limits is not None
        wish, policy = self.parameters, self._policy
        self._dry_run = wish.dry_run
        self._told = Decision()
        self._controller = controller = Controller(
            policy.spec,
            policy.needs,
            self._limits,
            wish.safety,
            wish.blend,
            self._stop,
            period_s=1.0 / wish.control_rate,
            replan_actions=wish.replan_actions,
        )
        if wish.instruction:
            controller.set_instruction(wish.instruction, self._now_ns())
        self._worker = PolicyWorker(
            policy,
            controller,
            embed=self._embed,
            now_ns=self._now_ns,
            on_chunk=self._publish_chunk,
            on_fault=self.report_fault,
            warn=lambda words: self.get_logger().warning(words),
        )
        self._inputs = ActionInputs(
            self,
            controller,
            policy.needs,
            streams=self._streams,
            images={
                name: topic
                for name, topic in named_values.parse(wish.images).items()
                if name in policy.needs.images
            },
            image_size=wish.image_size,
            robot_names=self._robot_names,
            on_instruction=self._on_instruction,
            news=self._worker.notify,
        )
        # On the system's clock a timer stands still for as long as that clock is set back.
        clock = self.get_clock() if self.get_clock().ros_time_is_active else self._steady
        self._control_timer = self.create_timer(1.0 / wish.control_rate, self._tick, clock=clock)
        where = "dry run: the robot gets no command" if wish.dry_run else "the robot may move"
        self.get_logger().info(f"active, {where}")

    def stop(self) -> None:
        # First the robot, then everything that may take time.
        if self._control_timer is not None:
            self.destroy_timer(self._control_timer)
            self._control_timer = None
        controller, self._controller = self._controller, None
        if controller is not None and self._outputs is not None:
            self._send(controller.last_command(), self._now_ns())
        if self._inputs is not None:
            self._inputs.close()
        if self._worker is not None:
            self._worker.close()
        self._inputs = self._worker = None
        if controller is not None and self._outputs is not None:
            self._publish_status()
            self._outputs.flush()

    def tear_down(self) -> None:
        self.stop()
        if self._outputs is not None:
            self._outputs.destroy()
        if self._policy is not None:
            self._policy.close()
        self._outputs = self._policy = self._limits = self._embed = None

    # --- the control loop ---

    def _tick(self) -> None:
        controller, worker = self._controller, self._worker
        if controller is None or worker is None:
            return
        wish = self.parameters
        now_ns = self._now_ns()
        self._stop.watch(time.monotonic_ns(), wish.stop_heartbeat)
        controller.settings = wish.safety
        if wish.dry_run != self._dry_run:
            self._change_dry_run(controller, wish.dry_run)
        self._send(controller.tick(now_ns), now_ns)
        decision = controller.decision
        if (decision.state, decision.reason) != (self._told.state, self._told.reason):
            self._tell(decision)
            self._publish_status()
        worker.notify()

    def _change_dry_run(self, controller: Controller, dry_run: bool) -> None:
        """The robot is handed over at rest, in both directions."""
        self._send(controller.last_command(), self._now_ns())
        controller.start_over()
        self._dry_run = dry_run
        words = "dry run: the robot gets no command" if dry_run else "the robot may move"
        self.get_logger().warning(words)

    def _send(self, command: Command | None, now_ns: int) -> None:
        if command is not None and self._outputs is not None:
            now = Time(nanoseconds=now_ns, clock_type=ClockType.ROS_TIME)
            self._outputs.command(command, now, dry_run=self._dry_run)

    def _tell(self, decision: Decision) -> None:
        if decision.state is State.EXECUTING:
            self.get_logger().info("executing")
        elif self._told.state is State.EXECUTING or decision.reason is Reason.EMERGENCY_STOP:
            self.get_logger().warning(f"{decision.state.value}: {decision.detail}")
        self._told = decision

    # --- callbacks ---

    def _on_stop_button(self, message: Bool) -> None:
        self._stop.button(message.data, time.monotonic_ns(), "topic")
        if message.data:
            self._stop_now()

    def _on_stop_service(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._stop.press("service")
        self._stop_now()
        response.success = True
        response.message = "stopped; ~/clear_emergency_stop lets the robot go on"
        return response

    def _on_clear_stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        latched = self._stop.latched
        refused = self._stop.clear(time.monotonic_ns(), self.parameters.stop_heartbeat)
        response.success = not refused
        cleared = "cleared; the robot goes on with the policy's next answer"
        response.message = refused or (cleared if latched else "it was not set")
        self.get_logger().warning(f"emergency stop: {response.message}")
        self._publish_status()
        return response

    def _stop_now(self) -> None:
        """Without waiting for the next turn of the control loop."""
        self._tick()
        self._publish_status()

    def _on_instruction(self, text: str) -> None:
        if self._controller is not None and self._worker is not None:
            drop, words = self._controller.set_instruction(text, self._now_ns())
            log = self.get_logger()
            log.info(words) if drop is None else log.warning(words)
            self._worker.notify()

    def _on_set_instruction(
        self, request: SetInstruction.Request, response: SetInstruction.Response
    ) -> SetInstruction.Response:
        if self._controller is None or self._worker is None:
            response.message = f"the node is {self.phase.value}: nobody would follow it"
            return response
        drop, response.message = self._controller.set_instruction(
            request.instruction, self._now_ns()
        )
        response.success = drop is None
        self._worker.notify()
        return response

    def _bring_itself_up(self) -> None:
        self.bring_up()

    # --- what is told ---

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    def _publish_chunk(
        self, chunk: Chunk, instruction: str, t0_ns: int, refused: Drop | None
    ) -> None:
        """Called in the policy's thread."""
        outputs, policy = self._outputs, self._policy
        if outputs is not None and policy is not None:
            outputs.chunks.publish(chunk_message(chunk, policy, instruction, t0_ns, refused))

    def _publish_status(self) -> None:
        if self._outputs is not None:
            self._outputs.status.publish(self._status())

    def _status(self) -> ActionStatus:
        controller, worker, policy = self._controller, self._worker, self._policy
        now = self.get_clock().now()
        status = ActionStatus(
            header=Header(stamp=now.to_msg()),
            state=ActionStatus.FAULT if self.faulted else ActionStatus.INACTIVE,
            reason=ActionStatus.NOT_ACTIVE,
            detail=self.last_error or "the node is not active",
            dry_run=self.parameters.dry_run,
            emergency_stop=self._stop.latched,
            emergency_stop_source=self._stop.source,
            policy_name=policy.name if policy else "",
            policy_sha256=policy.sha256 if policy else "",
            commands=self._outputs.commands if self._outputs else 0,
        )
        if controller is None or self.phase is not Phase.ACTIVE:
            return status
        decision = controller.decision
        status.state, status.reason = STATES[decision.state], REASONS[decision.reason]
        status.detail = decision.detail
        ages = controller.ages(now.nanoseconds)
        inputs = {**ages.streams, "joint_states": ages.proprioception}
        inputs["instruction"] = ages.instruction
        status.input_names = list(inputs)
        status.input_ages = [age_or_nan(age) for age in inputs.values()]
        status.instruction = controller.instruction
        status.chunk_id, status.actions_left = controller.progress()
        status.actions_consumed = controller.clock
        status.clamp_kinds, status.clamp_counts = counted(controller.clamps.snapshot())
        status.drop_kinds, status.drop_counts = counted(controller.drops.snapshot())
        status.hold_kinds, status.hold_counts = counted(controller.holds.snapshot())
        if worker is not None:
            status.chunks = worker.chunks
            status.inference_ms = 1e3 * worker.inference_s
        return status


def _sentence_embedding() -> Embed:
    """The sentence encoder as a function of one text.

    Raises:
        SentenceEncoderError: it is not installed.
    """
    encoder = installed_encoder()

    def embed(text: str) -> np.ndarray:
        return encoder([text])[0].numpy()  # (384,)

    embed("ready")  # its first use is slow
    return embed


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until a signal; returns the exit status."""
    return run(ActionNode, args)


if __name__ == "__main__":
    sys.exit(main())
