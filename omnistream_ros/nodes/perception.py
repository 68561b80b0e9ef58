# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node ``omnistream_perception``: images in; depth, pose and features out.

configure   loads the model, allocates the stream's memory and warms up, makes the publishers
activate    subscribes and starts the thread that runs the model
deactivate  unsubscribes, lets the frame in work finish, forgets the stream
cleanup     gives the model and its device memory back
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, qos_profile_sensor_data
from rclpy.utilities import get_rmw_implementation_identifier
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from omnistream_ros.model import KVCache, ModelError, OmniStream, load_model
from omnistream_ros.msg import StreamStatus
from omnistream_ros.nodes.diagnostics import Diagnostics, Report
from omnistream_ros.nodes.frames import OdometryFrame, StaticTree
from omnistream_ros.nodes.image_input import ImageInput, InputSettings
from omnistream_ros.nodes.lifecycle import ManagedNode, TransitionRefusedError
from omnistream_ros.nodes.outputs import ModelFacts, OutputPublishers, OutputSettings
from omnistream_ros.nodes.parameters import ParameterSet
from omnistream_ros.nodes.perception_parameters import PerceptionParameters
from omnistream_ros.nodes.point_clouds import CloudSettings
from omnistream_ros.nodes.process import run
from omnistream_ros.nodes.statistics import StreamStatistics
from omnistream_ros.nodes.worker import StreamWorker
from omnistream_ros.stream.device_memory import StreamMemoryError
from omnistream_ros.stream.engines import Engine, EngineError, EngineMaker, StepShape
from omnistream_ros.stream.frame import Frame
from omnistream_ros.stream.preprocess import model_size
from omnistream_ros.stream.result import Outputs
from omnistream_ros.stream.session import StreamSession

NODE_NAME = "omnistream_perception"


class PerceptionNode(ManagedNode):
    """See the module; topics, parameters and messages are in docs/perception_node.md."""

    def __init__(self) -> None:
        super().__init__(NODE_NAME)
        self._engine: Engine | None = None
        self._model: ModelFacts | None = None
        self._device = ""
        self._session: StreamSession | None = None
        self._outputs: OutputPublishers | None = None
        self._tf_subscriptions: list = []
        self._tree = StaticTree()
        self._odometry: OdometryFrame | None = None
        self._statistics: StreamStatistics | None = None
        self._images: ImageInput | None = None
        self._worker: StreamWorker | None = None
        self._stalled = False
        self._options = ParameterSet(self, PerceptionParameters, phase=lambda: self.phase)
        self.create_service(Trigger, "~/reset", self._on_reset)
        self._diagnostics = Diagnostics(
            self, self.parameters.diagnostics_period, self._report, before=self._watch_for_silence
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
        self._device = _device(wish.device)
        if wish.threads:
            torch.set_num_threads(wish.threads)
        try:
            network, card = load_model(wish.model, device=self._device)
        except ModelError as error:
            raise TransitionRefusedError(
                f"{error}. Set the parameter 'model' and configure again"
            ) from error
        self._engine = self._make_engine(network, card.sha256)
        self._model = ModelFacts(
            name=card.name,
            sha256=card.sha256,
            patch_size=network.config.patch_size,
            layers=network.config.depth,
            has_depth=network.depth_head is not None,
            has_pose=network.camera_head is not None or network.matching_head is not None,
        )
        self._session = self._warm_session()
        # Listening from here on: an active node should know the tree at its first image.
        latched = QoSProfile(depth=100, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
        self._tf_subscriptions = [
            self.create_subscription(TFMessage, "/tf_static", self._on_tf_static, latched),
            self.create_subscription(TFMessage, "/tf", self._on_tf, qos_profile_sensor_data),
        ]
        self._outputs = OutputPublishers(self, self._model)
        self.get_logger().info(
            f"{self._model.name} ({self._model.sha256[:12]}) on {self._device}, engine "
            f"{self._engine.name}, context of "
            f"{self._session.context_capacity} frames ({wish.memory}) in "
            f"{self._session.cache_bytes / 2**20:.1f} MiB"
        )

    def start(self) -> None:
        assert self._model is not None
        assert self._outputs is not None
        assert self._session is not None
        wish = self.parameters
        self._session.restart()
        self._statistics = StreamStatistics()
        self._stalled = False
        self._odometry = OdometryFrame(wish.odom_frame, wish.base_frame, self._tree)
        self._images = ImageInput(self, self._statistics, self._input_settings)
        self._worker = StreamWorker(
            self._session,
            self._images,
            self._outputs,
            self._odometry,
            self._statistics,
            self._model,
            settings=self._output_settings,
            rectified=wish.rectified,
            stream_id=wish.stream_id or self.get_fully_qualified_name(),
            on_fault=self.report_fault,
            tell=self._tell,
        )
        self._worker.publish_state(StreamStatus.WAITING)
        self.get_logger().info(f"waiting for images on '{self._images.topic}'")
        self._advise_on_transport()

    def stop(self) -> None:
        if self._images is not None:
            self._images.close()
        if self._worker is not None:
            self._worker.join()
            state = StreamStatus.FAULT if self.faulted else StreamStatus.INACTIVE
            self._worker.publish_state(state)
        self._images = self._worker = self._odometry = self._statistics = None

    def tear_down(self) -> None:
        self.stop()
        for subscription in self._tf_subscriptions:
            self.destroy_subscription(subscription)
        self._tf_subscriptions = []
        self._tree = StaticTree()
        if self._outputs is not None:
            self._outputs.destroy()
        self._outputs = self._session = self._engine = self._model = None
        # Modules refer to themselves in circles; without this their weights wait for a collection.
        gc.collect()
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()

    # --- callbacks ---

    def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._worker is None:
            response.message = f"the node is {self.phase.value}: there is no stream to reset"
            return response
        self._worker.request_reset()
        response.success = True
        response.message = "the next image begins a new epoch"
        return response

    def _on_tf_static(self, message: TFMessage) -> None:
        for fault in self._tree.add(message):
            self.get_logger().warning(fault)

    def _on_tf(self, message: TFMessage) -> None:
        if self._odometry is not None:
            self._odometry.hear(message)

    def _watch_for_silence(self) -> None:
        """Say so while no image comes; the worker itself only wakes up for images."""
        if self._worker is None or self._statistics is None or self._images is None:
            return
        idle_s = self._statistics.idle_s()
        if self._statistics.counts()[1] == 0:
            self._worker.publish_state(StreamStatus.WAITING)
        elif idle_s > self.parameters.stall_timeout:
            self._worker.publish_state(StreamStatus.STALLED)
            if not self._stalled:
                self.get_logger().warning(
                    f"no usable image on '{self._images.topic}' for {idle_s:.1f} s "
                    f"({self._images.publishers()} publishers)"
                )
            self._stalled = True
        else:
            self._stalled = False

    # --- inner workings ---

    def _bring_itself_up(self) -> None:
        self.bring_up()

    def _tell(self, text: str) -> None:
        self.get_logger().info(text)

    def _make_engine(self, network: OmniStream, sha256: str) -> Engine:
        """What runs the model: chosen by parameter, checked against the model itself."""
        wish, config = self.parameters, network.config
        file = Path(wish.engine_file) if wish.engine_file else None
        dtype = getattr(torch, wish.precision)
        try:
            size = model_size(
                wish.image_height, wish.image_width, config.model_pixels, config.patch_size
            )
            policy = wish.policy
            if wish.cache_megabytes:
                grid = config.grid(*size)
                policy = KVCache.fit(policy, wish.cache_megabytes, config, grid, dtype=dtype)
            shape = StepShape(*size, policy)
            maker = EngineMaker(network, sha256, shape, dtype, file, tell=self._tell)
            return maker.make(wish.engine)
        except (EngineError, ValueError) as error:
            raise TransitionRefusedError(
                f"{error}. Correct the parameters and configure again"
            ) from error

    def _warm_session(self) -> StreamSession:
        """The stream of this node, after two frames with every output.

        The first use of anything costs time and memory; what they allocated serves every stream
        until cleanup.
        """
        assert self._engine is not None
        assert self._model is not None
        wish = self.parameters
        everything = Outputs(
            depth=self._model.has_depth, pose=self._model.has_pose, features=wish.feature_keys
        )
        pixels = np.zeros((wish.image_height, wish.image_width, 3), np.uint8)
        try:
            session = StreamSession(
                self._engine.model,
                engine=self._engine,
                policy=wish.policy,
                cache_megabytes=wish.cache_megabytes or None,
                max_gap_s=wish.max_gap,
                resolution=wish.resolution,
                pose=None if wish.pose == "auto" else wish.pose,
            )
            for stamp_ns in (0, 1):
                session.step(Frame(pixels, stamp_ns), everything)
        except (ValueError, StreamMemoryError) as error:
            raise TransitionRefusedError(
                f"{error}. Correct the parameters and configure again"
            ) from error
        return session

    def _input_settings(self) -> InputSettings:
        wish = self.parameters
        return InputSettings(
            rectified=wish.rectified,
            camera_info_timeout=wish.camera_info_timeout,
            source_timeout=wish.source_timeout,
        )

    def _output_settings(self) -> OutputSettings:
        wish = self.parameters
        return OutputSettings(
            depth_encoding=wish.depth_encoding,
            cloud=CloudSettings(
                stride=wish.points_stride,
                max_range=wish.points_max_range,
                min_confidence=wish.points_min_confidence,
                organized=wish.points_organized,
            ),
            publish_tf=wish.publish_tf,
            odom_frame=wish.odom_frame,
            path_length=wish.path_length,
            features=wish.feature_keys,
        )

    def _report(self) -> Report | None:
        if self._model is None:
            return None
        wish = self.parameters
        images, worker, statistics = self._images, self._worker, self._statistics
        session = self._session
        return Report(
            statistics=statistics.snapshot() if statistics else None,
            image_topic=images.topic if images else "",
            publishers=images.publishers() if images else 0,
            model_name=self._model.name,
            weights_sha256=self._model.sha256,
            device=self._device,
            engine=self._engine.name if self._engine else "",
            engine_remark=self._engine.remark if self._engine else "",
            metric=worker.place.metric if worker else None,
            tracked=worker.place.tracked if worker else None,
            context_frames=worker.place.context_frames if worker else 0,
            context_capacity=session.context_capacity if session else 0,
            cache_bytes=session.cache_bytes if session else 0,
            stall_timeout=wish.stall_timeout,
        )

    def _advise_on_transport(self) -> None:
        new, old = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"
        if get_rmw_implementation_identifier() == "rmw_fastrtps_cpp" and not (
            os.environ.get(new) or os.environ.get(old)
        ):
            # Jazzy knows the older name only, and later distributions warn of it.
            name = old if os.environ.get("ROS_DISTRO") == "jazzy" else new
            self.get_logger().warning(
                "no Fast DDS profile is set: most images above half a megabyte will be lost on the "
                f"way; export {name} as the path of this package's config/fastdds.xml, for "
                "the publisher too"
            )


def _device(name: str) -> str:
    """The device for a parameter value.

    Raises:
        TransitionRefusedError: it does not exist here.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if available else "cpu"
    if name != "cpu" and int(name.partition(":")[2] or 0) >= available:
        raise TransitionRefusedError(
            f"device '{name}' does not exist: PyTorch sees {available} CUDA device(s). Set the "
            "parameter 'device' to cpu or auto and configure again"
        )
    return name


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until a signal; returns the exit status."""
    return run(PerceptionNode, args)


if __name__ == "__main__":
    sys.exit(main())
