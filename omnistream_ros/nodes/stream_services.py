# SPDX-License-Identifier: Apache-2.0
"""The services of the perception node beyond reset: save, restore, pause, scale, and what it is.

They are there in every state of the lifecycle, and answer in words where they cannot serve.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from std_srvs.srv import SetBool

from omnistream_ros.nodes.camera import Camera
from omnistream_ros.nodes.lifecycle import ManagedNode
from omnistream_ros.nodes.output_messages import ModelFacts
from omnistream_ros.nodes.worker import StreamWorker
from omnistream_ros.srv import GetInfo, SetScale, StreamState
from omnistream_ros.stream.state_file import StateFileError, load_state, save_state, state_path
from omnistream_ros.stream.streams import Streams

# Beyond the cache: keyframes, descriptors and covariances of the pose, for each camera.
_BESIDE_CACHE_BYTES = 64 << 20


class StreamServices:
    """Services of one node, from its creation to its end.

    Args:
        facts: of the model, None while the node is not configured.
        running: streams, worker and cameras, None while the node is not active.
        describe: fills in what a configured node is.
        folder: the parameter `state_directory`.
    """

    def __init__(
        self,
        node: ManagedNode,
        *,
        facts: Callable[[], ModelFacts | None],
        running: Callable[[], tuple[Streams, StreamWorker, Mapping[str, Camera]] | None],
        describe: Callable[[GetInfo.Response], None],
        folder: Callable[[], str],
    ) -> None:
        self._node = node
        self._facts = facts
        self._running = running
        self._describe = describe
        self._folder = folder
        for kind, name, serve in (
            (StreamState, "save_state", self._save),
            (StreamState, "restore_state", self._restore),
            (SetBool, "pause", self._pause),
            (SetScale, "set_scale", self._set_scale),
        ):
            node.create_service(kind, f"~/{name}", self._logged(name, serve))
        node.create_service(GetInfo, "~/get_info", self._get_info)

    def _logged(self, name: str, serve: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """A service that changes what the streams do, with a line in the log for each call."""

        def served(request: Any, response: Any) -> Any:
            response = serve(request, response)
            path = getattr(response, "path", "")
            text = f"{name}: {response.message}" + (f" ('{path}')" if path else "")
            if response.success:
                self._node.get_logger().info(text)
            else:
                self._node.get_logger().warning(text)
            return response

        return served

    def _save(
        self, request: StreamState.Request, response: StreamState.Response
    ) -> StreamState.Response:
        running, facts = self._running(), self._facts()
        if running is None or facts is None:
            response.message = self._not_active("there is no stream to save")
            return response
        _, worker, cameras = running
        try:
            path = state_path(state_folder(self._folder()), request.name)
            with worker.between_frames():
                state = {name: camera.state_dict() for name, camera in cameras.items()}
            size = save_state(path, state, facts.sha256)
        except StateFileError as error:
            response.message = str(error)
            return response
        response.success, response.path = True, str(path)
        response.message = f"{len(state)} stream(s) in {size / 1e6:.1f} MB"
        return response

    def _restore(
        self, request: StreamState.Request, response: StreamState.Response
    ) -> StreamState.Response:
        running, facts = self._running(), self._facts()
        if running is None or facts is None:
            response.message = self._not_active("activate it first")
            return response
        streams, worker, cameras = running
        largest = sum(_BESIDE_CACHE_BYTES + 2 * streams.cache_bytes(name) for name in cameras)
        try:
            path = state_path(state_folder(self._folder()), request.name)
            state = load_state(path, facts.sha256, largest)
            if set(state) != set(cameras):
                raise StateFileError(
                    f"{path} holds the cameras {_listed(state)}, the node has {_listed(cameras)}"
                )
            with worker.between_frames():
                _load_all(cameras, state)
                for camera in cameras.values():
                    camera.restored()
        except StateFileError as error:
            response.message = str(error)
            return response
        response.success, response.path = True, str(path)
        response.message = "the next image goes on from there"
        return response

    def _pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        running = self._running()
        if running is None:
            response.message = self._not_active("there is nothing to pause")
            return response
        for camera in running[2].values():
            camera.pause(request.data)
        response.success = True
        response.message = "paused: images are counted and not used" if request.data else "going on"
        return response

    def _set_scale(
        self, request: SetScale.Request, response: SetScale.Response
    ) -> SetScale.Response:
        running = self._running()
        if running is None:
            response.message = self._not_active("there is no stream to scale")
            return response
        _, worker, cameras = running
        if request.camera and request.camera not in cameras:
            response.message = f"no camera '{request.camera}': the node has {_listed(cameras)}"
            return response
        try:
            with worker.between_frames():
                for name in [request.camera] if request.camera else cameras:
                    cameras[name].set_scale(request.factor)
        except ValueError as error:
            response.message = str(error)
            return response
        response.success = True
        whose = f" of '{request.camera}'" if request.camera else ""
        response.message = (
            f"one unit of the model{whose} is {request.factor:g} m from the next image on"
            if request.factor
            else f"the scale{whose} is again what the parameter 'scale' asks for"
        )
        return response

    def _get_info(self, _: GetInfo.Request, response: GetInfo.Response) -> GetInfo.Response:
        response.state = self._node.phase.value
        response.package_version = _version()
        facts = self._facts()
        if facts is None:
            response.message = f"the node is {response.state}: configure it to load its model"
            return response
        response.success = True
        response.model_name, response.weights_sha256 = facts.name, facts.sha256
        response.has_depth, response.has_pose = facts.has_depth, facts.has_pose
        self._describe(response)
        return response

    def _not_active(self, what: str) -> str:
        return f"the node is {self._node.phase.value}: {what}"


def state_folder(parameter: str) -> Path:
    """Where states lie: the parameter, or a folder of ROS's own."""
    if parameter:
        return Path(parameter).expanduser()
    home = os.environ.get("ROS_HOME")
    return (Path(home) if home else Path.home() / ".ros") / "omnistream"


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The figures of a model card as names and texts: {"a": {"b": 0.1}} is {"a/b": "0.1"}."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def _load_all(cameras: Mapping[str, Camera], state: Mapping[str, Any]) -> None:
    """Load the states of all cameras, or of none.

    Raises:
        StateFileError: a state does not fit.
    """
    before = {name: camera.state_dict() for name, camera in cameras.items()}
    try:
        for name, camera in cameras.items():
            camera.load_state_dict(state[name])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        for name, camera in cameras.items():
            camera.load_state_dict(before[name])
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise StateFileError(f"the state does not fit this node: {text}") from error


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in names) if any(names) else "one without a name"


def _version() -> str:
    try:
        return importlib.metadata.version("omnistream_ros")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
