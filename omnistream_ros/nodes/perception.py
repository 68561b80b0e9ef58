# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node ``omnistream_perception``: images in; depth, pose and features out.

configure   loads the model, allocates the streams' memory and warms up, makes the publishers
activate    subscribes and starts the thread that runs the model
deactivate  unsubscribes, lets the frame in work finish, forgets the streams
cleanup     gives the model and its device memory back

One model serves any number of cameras, each with a stream, topics and statistics of its own.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Sequence

import torch
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.utilities import get_rmw_implementation_identifier
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from omnistream_ros.dds_profile import profile_variable
from omnistream_ros.msg import StreamStatus
from omnistream_ros.nodes import bond
from omnistream_ros.nodes.bond import Bond
from omnistream_ros.nodes.camera import Camera
from omnistream_ros.nodes.camera_settings import CameraSettings, camera_settings
from omnistream_ros.nodes.diagnostics import Diagnostics, Report
from omnistream_ros.nodes.frames import OdometryFrame, StaticTree
from omnistream_ros.nodes.inbox import Inbox
from omnistream_ros.nodes.lifecycle import ManagedNode, TransitionRefusedError
from omnistream_ros.nodes.model_setup import choose_device, load_engine, make_streams
from omnistream_ros.nodes.output_messages import ModelFacts
from omnistream_ros.nodes.parameters import ParameterSet
from omnistream_ros.nodes.perception_parameters import PerceptionParameters
from omnistream_ros.nodes.process import give_back_memory, run
from omnistream_ros.nodes.scale_inputs import ScaleInputs
from omnistream_ros.nodes.sent_transforms import SentTransforms
from omnistream_ros.nodes.stream_services import StreamServices, flattened
from omnistream_ros.nodes.worker import StreamWorker
from omnistream_ros.srv import GetInfo
from omnistream_ros.stream.engines import Engine
from omnistream_ros.stream.metric_scale import MetricScale
from omnistream_ros.stream.streams import Streams

NODE_NAME = "omnistream_perception"
# EX_SOFTWARE of sysexits.h
WATCHDOG_STATUS = 70
# How long the end of the process waits for the frame in work.
_END_PATIENCE_S = 0.5
_LAST_STATUS_S = 0.05


class PerceptionNode(ManagedNode):
    """See the module; topics, parameters and messages are in docs/perception_node.md."""

    def __init__(self) -> None:
        super().__init__(NODE_NAME)
        self._engine: Engine | None = None
        self._model: ModelFacts | None = None
        self._device = ""
        self._streams: Streams | None = None
        self._cameras: dict[str, Camera] = {}
        self._pose_camera = ""
        self._tf_subscriptions: list = []
        self._resets: list = []
        self._scale_inputs: ScaleInputs | None = None
        self._tree = StaticTree()
        self._sent = SentTransforms()
        self._inbox: Inbox | None = None
        self._worker: StreamWorker | None = None
        self._bond: Bond | None = None
        self._overdue = False
        self.abandoned = False  # the process ends while a frame is in work
        self._options = ParameterSet(
            self,
            PerceptionParameters,
            phase=lambda: self.phase,
            members=lambda values: values.cameras,
        )
        self._diagnostics = Diagnostics(
            self, self.parameters.diagnostics_period, self._reports, before=self._watch
        )
        self.create_service(Trigger, "~/reset", self._reset_service(""))
        StreamServices(
            self,
            facts=lambda: self._model,
            running=self._running,
            describe=self._describe,
            folder=lambda: self.parameters.state_directory,
        )
        if self.parameters.autostart:
            # As the first callback: loading must not keep the process from answering signals.
            self.create_guard_condition(self._bring_itself_up).trigger()

    @property
    def parameters(self) -> PerceptionParameters:
        """The parameters as they are now."""
        return self._options.values

    # --- the four steps of the lifecycle ---

    def set_up(self) -> None:
        wish = self.parameters
        names = wish.camera_names
        for text in self._options.unused():
            self.get_logger().warning(text)
        self._pose_camera = wish.pose_camera or names[0]
        if self._pose_camera not in names:
            raise TransitionRefusedError(
                f"pose_camera '{self._pose_camera}' is none of the cameras "
                f"({', '.join(wish.cameras) or 'which have no names'}). Correct it and configure "
                "again"
            )
        self._device = choose_device(wish.device)
        if wish.threads:
            torch.set_num_threads(wish.threads)
        self._engine, self._model = load_engine(
            wish, self._device, cameras=len(names), tell=self.get_logger().info
        )
        self._streams = self._warm_streams()
        # Listening from here on: an active node should know the tree at its first image.
        latched = QoSProfile(depth=100, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        self._tf_subscriptions = [
            self.create_subscription(TFMessage, "/tf_static", self._on_tf_static, latched),
            self.create_subscription(TFMessage, "/tf", self._on_tf, qos_profile_sensor_data),
        ]
        own = {name: self._options.of(name) for name in names}
        self._scale_inputs = ScaleInputs(
            self, self._tree, wish.base_frame, {values.scale for values in own.values()}
        )
        stream_id = wish.stream_id or self.get_fully_qualified_name()
        for name in names:
            self._cameras[name] = Camera(
                self,
                name,
                f"{stream_id}/{name}" if name else stream_id,
                self._model,
                self._streams,
                self._settings_of(name),
                MetricScale(own[name].scale, own[name].scale_factor),
                self._scale_inputs,
                modes=self._options.of(name).output_modes,
                on_tf=name == self._pose_camera,
            )
            if name:
                reset = self.create_service(Trigger, f"~/{name}/reset", self._reset_service(name))
                self._resets.append(reset)
        together = f"{len(names)} cameras at once, " if self._streams.at_once > 1 else ""
        cache_bytes = sum(map(self._streams.cache_bytes, names))
        self.get_logger().info(
            f"{self._model.name} ({self._model.sha256[:12]}) on {self._device}, engine "
            f"{self._engine.name}, {together}context of "
            f"{self._streams.context_capacity} frames ({wish.memory}) in "
            f"{cache_bytes / 2**20:.1f} MiB"
        )

    def start(self) -> None:
        assert self._streams is not None
        wish = self.parameters
        self._streams.restart()
        self._inbox = Inbox(self._cameras)
        for name, camera in self._cameras.items():
            # Two estimates with origins and drifts of their own must not share a frame.
            odom = wish.odom_frame if name == self._pose_camera else f"{wish.odom_frame}_{name}"
            frame = OdometryFrame(
                odom, wish.base_frame, self._tree, self._sent, inverted=wish.tf_inverted
            )
            camera.start(self._inbox, frame)
        self._worker = StreamWorker(
            self._streams, self._cameras.values(), self._inbox, on_fault=self.report_fault
        )
        for camera in self._cameras.values():
            camera.publish_state(StreamStatus.WAITING)
            self.get_logger().info(f"waiting for images on '{camera.topic}'")
        if wish.bond_heartbeat_period and bond.installed():
            self._bond = Bond(self, wish.bond_heartbeat_period)
        self._advise_on_transport()

    def stop(self) -> None:
        for camera in self._cameras.values():
            camera.close_input()
        if self._inbox is not None:
            self._inbox.close()
        if self._bond is not None:
            self._bond.break_off()
        self._bond = None
        if self._worker is not None and not self._worker.join(
            _END_PATIENCE_S if self.ending else None
        ):
            self.abandoned = True
            self.get_logger().warning("ends without waiting for the frame in work")
        for camera in self._cameras.values():
            camera.stop(StreamStatus.FAULT if self.faulted else StreamStatus.INACTIVE)
        if self.faulted and self._worker is not None:
            # The publishers go next, and what a subscriber has not read when it hears of that is
            # lost; why the node fell silent should not be.
            time.sleep(_LAST_STATUS_S)
        self._inbox = self._worker = None

    def tear_down(self) -> None:
        self.stop()
        for subscription in self._tf_subscriptions:
            self.destroy_subscription(subscription)
        for service in self._resets:
            self.destroy_service(service)
        self._tf_subscriptions, self._resets = [], []
        if self._scale_inputs is not None:
            self._scale_inputs.close()
        self._scale_inputs = None
        self._tree = StaticTree()
        for camera in self._cameras.values():
            camera.destroy()
        self._cameras = {}
        self._streams = self._engine = self._model = None
        # Modules refer to themselves in circles; without this their weights wait for a collection.
        gc.collect()
        give_back_memory()
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()

    # --- callbacks ---

    def _reset_service(self, camera: str) -> Callable[..., Trigger.Response]:
        """The callback of a reset of one camera, or of all for the name ""."""

        def reset(_: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
            if self._worker is None:
                response.message = f"the node is {self.phase.value}: there is no stream to reset"
                return response
            for name in [camera] if camera else list(self._cameras):
                self._cameras[name].request_reset()
            response.success = True
            response.message = "the next image begins a new epoch"
            self.get_logger().info(f"reset{f' of {camera}' if camera else ''}: {response.message}")
            return response

        return reset

    def _on_tf_static(self, message: TFMessage) -> None:
        for fault in self._tree.add(message):
            self.get_logger().warning(fault)

    def _on_tf(self, message: TFMessage) -> None:
        # Only this one places frames on /tf.
        if self._pose_camera in self._cameras:
            self._cameras[self._pose_camera].hear_tf(message)

    def _watch(self) -> None:
        """Look for what does not come: images, and results of images."""
        busy_s = self._busy_s()
        for camera in self._cameras.values():
            camera.watch(busy=busy_s > 0.0)
        overdue = busy_s > self.parameters.stall_timeout
        if overdue and not self._overdue:
            self.get_logger().warning(
                f"the model has been at work on one image for {busy_s:.1f} s: the device hangs, "
                "or is far too slow for this model"
            )
        self._overdue = overdue
        if 0.0 < self.parameters.watchdog_timeout < busy_s:
            self.get_logger().fatal(
                f"no result for {busy_s:.1f} s (watchdog_timeout): the process ends with status "
                f"{WATCHDOG_STATUS}, to be started again"
            )
            os._exit(WATCHDOG_STATUS)

    def _busy_s(self) -> float:
        return self._worker.busy_s if self._worker is not None else 0.0

    # --- what services ask for ---

    def _running(self) -> tuple[Streams, StreamWorker, dict[str, Camera]] | None:
        if self._worker is None or self._streams is None:
            return None
        return self._streams, self._worker, self._cameras

    def _describe(self, response: GetInfo.Response) -> None:
        assert self._model is not None
        assert self._engine is not None
        assert self._streams is not None
        accuracy = flattened(self._model.accuracy)
        response.licence, response.metric = self._model.licence, self._model.metric
        response.accuracy_names, response.accuracy_values = list(accuracy), list(accuracy.values())
        response.device, response.engine = self._device, self._engine.name
        response.precision = self.parameters.precision
        response.cameras = [name for name in self._cameras if name]
        response.context_capacity = self._streams.context_capacity
        response.cache_bytes = sum(map(self._streams.cache_bytes, self._cameras))

    # --- inner workings ---

    def _bring_itself_up(self) -> None:
        self.bring_up()

    def _warm_streams(self) -> Streams:
        assert self._engine is not None
        assert self._model is not None
        wish = self.parameters
        own = {name: self._options.of(name) for name in wish.camera_names}
        return make_streams(wish, self._engine, self._model, own)

    def _settings_of(self, camera: str) -> Callable[[], CameraSettings]:
        """What a camera's frames depend on, made anew when a parameter has changed."""
        made_of, made = None, None

        def settings() -> CameraSettings:
            nonlocal made_of, made
            wish = self._options.of(camera)
            if made is None or wish is not made_of:
                made_of, made = wish, camera_settings(wish)
            return made

        return settings

    def _reports(self) -> list[Report]:
        if self._model is None or self._streams is None:
            return []
        return [self._report(camera) for camera in self._cameras.values()]

    def _report(self, camera: Camera) -> Report:
        assert self._model is not None
        assert self._streams is not None
        active = self._worker is not None
        return Report(
            camera=camera.name,
            statistics=camera.statistics(),
            image_topic=camera.topic,
            publishers=camera.publishers(),
            silence=camera.silence,
            model_name=self._model.name,
            weights_sha256=self._model.sha256,
            device=self._device,
            engine=self._engine.name if self._engine else "",
            engine_remark=self._engine.remark if self._engine else "",
            metric=camera.place.metric if active else None,
            tracking=camera.place.tracking if active else None,
            context_frames=camera.place.context_frames if active else 0,
            context_capacity=self._streams.context_capacity,
            cache_bytes=self._streams.cache_bytes(camera.name),
            stall_timeout=camera.settings.stall_timeout,
            target_rate=camera.settings.target_rate,
            paused=camera.paused,
            scale=camera.scale_state() if active else None,
            scale_fault=camera.scale_fault,
            busy_s=self._busy_s(),
        )

    def _advise_on_transport(self) -> None:
        name = profile_variable(os.environ)
        if get_rmw_implementation_identifier() == "rmw_fastrtps_cpp" and name:
            self.get_logger().warning(
                "no Fast DDS profile is set: most images above half a megabyte will be lost on the "
                f"way; export {name} as the path of this package's config/fastdds.xml, for "
                "the publisher too"
            )


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until a signal; returns the exit status."""
    return run(PerceptionNode, args)


if __name__ == "__main__":
    sys.exit(main())
