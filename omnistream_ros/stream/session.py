# SPDX-License-Identifier: Apache-2.0
"""One camera stream: a frame goes in, what the model knows about it comes out.

A session owns what belongs to one camera - the cache, the epoch, the pose - and borrows the model,
which several sessions may share. It is not thread-safe: one frame at a time.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from omnistream_ros.model import KVCache, OmniStream, Prediction
from omnistream_ros.stream.camera_estimate import CameraEstimate
from omnistream_ros.stream.depth_resize import resize_confidence, resize_depth
from omnistream_ros.stream.epochs import EpochRules
from omnistream_ros.stream.features import check_feature, feature_tensor
from omnistream_ros.stream.frame import Frame, Intrinsics
from omnistream_ros.stream.head_pose import HeadPose
from omnistream_ros.stream.odometry import Odometry
from omnistream_ros.stream.preprocess import Preprocessor, model_size, model_to_source
from omnistream_ros.stream.result import Outputs, Pose, StreamResult

RESOLUTIONS = ("model", "source")
POSES = ("head", "geometric")
_EVERYTHING = Outputs()


class StreamSession:
    """Advances the model by one frame per call and keeps a bounded memory of the past.

    Args:
        model: the network, on its device and in its dtype.
        sink: first frames of an epoch that stay visible for ever.
        window: recent frames that stay visible, the current one included.
        max_gap_s: a longer time between two frames begins a new epoch.
        resolution: of depth and confidence: "model" as the network computes them, or "source", the
            size of the camera image (edges stay sharp, planes stay planes: see `depth_resize`).
        pose: where the pose comes from: "geometric" (`odometry`: matching, depth and a solver), or
            "head" (the network's camera head). By default geometric where the model can.

    Raises:
        ValueError: an argument that makes no sense, or that this model cannot do.
    """

    def __init__(
        self,
        model: OmniStream,
        *,
        sink: int = 1,
        window: int = 16,
        max_gap_s: float = 2.0,
        resolution: str = "model",
        pose: str | None = None,
    ) -> None:
        if resolution not in RESOLUTIONS:
            raise ValueError(f"resolution must be one of {RESOLUTIONS}, got {resolution!r}")
        if sink < 0 or window < 1:
            raise ValueError(
                f"sink must be at least 0 and window at least 1 frame, got {sink} and {window}"
            )
        if pose is None:
            pose = "head" if model.matching_head is None else "geometric"
        if pose not in POSES:
            raise ValueError(f"pose must be one of {POSES}, got {pose!r}")
        if pose == "geometric" and model.matching_head is None:
            raise ValueError(
                f"model {model.config.name!r} has no matching head, so pose cannot be geometric; "
                "use pose='head'"
            )
        self._model = model
        self._config = model.config
        self._sink = sink
        self._window = window
        self._resolution = resolution
        self._rules = EpochRules(max_gap_s)
        self._pose: HeadPose | Odometry = HeadPose()
        if pose == "geometric":
            assert model.matching_head is not None
            self._pose = Odometry(model.matching_head)
        self._camera = CameraEstimate(model.config.canonical_focal)
        self._epoch = -1  # of the last frame; the first frame begins epoch 0
        # Made for the first image, kept as long as images of that size come.
        self._preprocess: Preprocessor | None = None
        self._cache: KVCache | None = None

    @property
    def context_capacity(self) -> int:
        """Frames that attention can see at most."""
        return self._sink + self._window

    @property
    def cache_bytes(self) -> int:
        """Device memory of the key/value cache; 0 before the first frame."""
        return 0 if self._cache is None else self._cache.nbytes

    def reset(self) -> None:
        """Begin a new epoch with the next frame (reason "request"); the pose stays continuous."""
        self._rules.request()

    @torch.no_grad()
    def step(self, frame: Frame, outputs: Outputs = _EVERYTHING) -> StreamResult:
        """Process the next frame.

        Args:
            frame: later in time than the one before, else a new epoch begins.
            outputs: what to compute beyond advancing the stream.

        Raises:
            ValueError: an output that this model does not have, or an image that is too elongated;
                the stream is then as if the frame had never come.
        """
        self._check_outputs(outputs)
        watch = _Stopwatch(self._model.backbone.device)
        reason = self._rules.check(frame)
        if reason is not None:
            self._begin_epoch((frame.height, frame.width))
        assert self._preprocess is not None
        assert self._cache is not None
        pixels = self._preprocess(frame.image)  # (1, 3, h, w)
        watch.lap("preprocess")

        features = self._model.backbone.step(pixels, self._cache)
        self._epoch += reason is not None
        self._rules.accept(frame, begins=reason is not None)
        watch.lap("backbone")

        guess_camera = frame.intrinsics is None and (outputs.depth or outputs.pose)
        head_pose = outputs.pose and isinstance(self._pose, HeadPose)
        prediction = self._model.predict(
            features,
            depth=outputs.depth,
            rays=False,
            camera=self._model.camera_head is not None and (head_pose or guess_camera),
        )
        source_camera = self._source_camera(frame, prediction)
        size = self._preprocess.size
        model_camera = source_camera.resized(size[1], size[0])
        watch.lap("heads")

        pose = self._update_pose(frame, prediction, model_camera) if outputs.pose else None
        watch.lap("pose")

        at_source = self._resolution == "source"
        depth, confidence = prediction.depth, prediction.depth_confidence
        if depth is not None and confidence is not None:
            depth, confidence = self._scaled_depth(depth, model_camera), confidence[0].float()
            if at_source:
                wanted = (frame.height, frame.width)
                depth, confidence = (
                    resize_depth(depth, wanted),
                    resize_confidence(confidence, wanted),
                )
        result = StreamResult(
            stamp_ns=frame.stamp_ns,
            epoch=self._epoch,
            frame_index=self._cache.frames_seen - 1,
            epoch_reason=reason,
            context_frames=self._cache.context_frames(),
            metric=self._config.metric and frame.intrinsics is not None,
            intrinsics=source_camera if at_source else model_camera,
            depth=depth,
            confidence=confidence,
            pose=pose,
            features={key: feature_tensor(features, key, self._config) for key in outputs.features},
            grid=features.grid,
            model_size=size,
            source_size=(frame.height, frame.width),
            model_to_source=model_to_source(size, (frame.height, frame.width)),
            timings=watch.seconds,
        )
        watch.lap("postprocess")
        return result

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything the stream remembers; tensors, numpy arrays and plain numbers.

        A session of the same model and arguments that loads it continues to the last bit.
        """
        return {
            "model": self._config.to_dict(),
            "epoch": self._epoch,
            "source_size": self._preprocess and self._preprocess.source_size,
            "rules": self._rules.state_dict(),
            "camera": self._camera.state_dict(),
            "pose_source": type(self._pose).__name__,
            "pose": self._pose.state_dict(),
            "cache": self._cache and self._cache.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue a stream saved by ``state_dict``.

        Raises:
            ValueError: the state comes from another model or another size of cache; the session is
                then unchanged.
        """
        if state["model"] != self._config.to_dict():
            raise ValueError(
                f"the saved stream belongs to model {state['model']['name']!r} with another "
                f"configuration than this session's {self._config.name!r}"
            )
        if state["pose_source"] != type(self._pose).__name__:
            raise ValueError(
                f"the saved stream has its pose from {state['pose_source']}, this session from "
                f"{type(self._pose).__name__}; create the session with the same `pose`"
            )
        if state["cache"] is None:
            self._preprocess = self._cache = None
        else:
            source_size = tuple(state["source_size"])
            preprocess, cache = self._allocate(source_size)
            cache.load_state_dict(state["cache"])
            self._preprocess, self._cache = preprocess, cache
        self._rules.load_state_dict(state["rules"])
        self._camera.load_state_dict(state["camera"])
        self._pose.load_state_dict(state["pose"])
        self._epoch = int(state["epoch"])

    def _check_outputs(self, outputs: Outputs) -> None:
        """Refuse what this model cannot give, before anything is touched."""
        if outputs.depth and self._model.depth_head is None:
            raise ValueError(
                f"model {self._config.name!r} has no depth head; ask with Outputs(depth=False)"
            )
        if outputs.pose and isinstance(self._pose, HeadPose) and self._model.camera_head is None:
            raise ValueError(
                f"model {self._config.name!r} has no camera head; ask with Outputs(pose=False)"
            )
        for key in outputs.features:
            check_feature(key, self._config)

    def _begin_epoch(self, source_size: tuple[int, int]) -> None:
        """Forget the past; memory is only allocated anew when the size asks for it."""
        if self._preprocess is None or self._preprocess.source_size != source_size:
            preprocess, cache = self._allocate(source_size)
            self._preprocess = preprocess
            if self._cache is None or self._cache.grid != cache.grid:
                self._cache = cache
        assert self._cache is not None
        self._cache.reset()
        self._camera.reset()
        self._pose.begin_epoch()

    def _allocate(self, source_size: tuple[int, int]) -> tuple[Preprocessor, KVCache]:
        """What the stream needs for images of one size (H, W)."""
        config, backbone = self._config, self._model.backbone
        size = model_size(*source_size, config.model_pixels, config.patch_size)
        preprocess = Preprocessor(
            source_size, size, device=backbone.device, dtype=backbone.compute_dtype
        )
        return preprocess, backbone.allocate_cache(*size, sink=self._sink, window=self._window)

    def _update_pose(self, frame: Frame, prediction: Prediction, model_camera: Intrinsics) -> Pose:
        if isinstance(self._pose, HeadPose):
            assert prediction.camera is not None
            assert self._cache is not None
            return self._pose.update(prediction.camera, self._cache.frames_seen - 1)

        def depth() -> torch.Tensor:
            # Odometry needs it for keyframes only, the caller perhaps not at all.
            known = prediction.depth
            if known is None:
                known = self._model.predict(prediction.features, rays=False, camera=False).depth
            assert known is not None
            return self._scaled_depth(known, model_camera)

        return self._pose.update(prediction.features.pyramid, depth, model_camera, frame.stamp_ns)

    def _source_camera(self, frame: Frame, prediction: Prediction) -> Intrinsics:
        """The camera of the frame: told, or what the model has seen of it in this epoch."""
        if frame.intrinsics is not None:
            return frame.intrinsics
        if prediction.camera is not None:
            self._camera.update(prediction.camera)
        return self._camera.intrinsics(frame.width, frame.height)

    def _scaled_depth(self, depth: torch.Tensor, model_camera: Intrinsics) -> torch.Tensor:
        """Depth (1, h, w) of the canonical camera as depth (h, w) of the real one.

        The network judges size by angle: the same picture through a lens of twice the focal length
        shows the scene at twice the distance.
        """
        canonical_fx = self._config.canonical_focal * model_camera.width
        return depth[0].float() * (model_camera.fx / canonical_fx)


class _Stopwatch:
    """Seconds by stage; waits for the device, so that each stage carries its own work."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.seconds: dict[str, float] = {}
        self._start = self._now()

    def lap(self, stage: str) -> None:
        now = self._now()
        self.seconds[stage] = now - self._start
        self._start = now

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()
