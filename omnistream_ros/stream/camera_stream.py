# SPDX-License-Identifier: Apache-2.0
"""What belongs to one camera and lies outside the cache: epochs, preprocessing, lens and pose.

`StreamSession` puts one of these before a cache of its own, `StreamBatch` several before one cache.
The order of a frame is check, begins, (begin_epoch), pixels, the network, accept, result.
"""

from __future__ import annotations

from typing import Any

import torch

from omnistream_ros.model import OmniStream, Prediction
from omnistream_ros.stream.camera_estimate import CameraEstimate
from omnistream_ros.stream.depth_resize import resize_confidence, resize_depth
from omnistream_ros.stream.epochs import EpochReason, EpochRules
from omnistream_ros.stream.features import check_feature, feature_tensor
from omnistream_ros.stream.frame import Frame, Intrinsics
from omnistream_ros.stream.fused_pose import FusedPose
from omnistream_ros.stream.head_pose import HeadPose
from omnistream_ros.stream.odometry import Odometry
from omnistream_ros.stream.patches import luminance
from omnistream_ros.stream.preprocess import Preprocessor, model_size, model_to_source
from omnistream_ros.stream.result import Outputs, Pose, StreamResult
from omnistream_ros.stream.stopwatch import Stopwatch
from omnistream_ros.stream.undistort import Undistorter

RESOLUTIONS = ("model", "source")
POSES = ("head", "geometric", "fused")


class CameraStream:
    """One camera. Arguments and errors as of `StreamSession`."""

    def __init__(
        self,
        model: OmniStream,
        *,
        max_gap_s: float,
        resolution: str,
        pose: str | None,
        consistent_depth: bool | None,
    ) -> None:
        if resolution not in RESOLUTIONS:
            raise ValueError(f"resolution must be one of {RESOLUTIONS}, got {resolution!r}")
        follows = model.matching_head is not None and model.depth_head is not None
        if pose is None:
            pose = "geometric" if follows else "head"
        if pose not in POSES:
            raise ValueError(f"pose must be one of {POSES}, got {pose!r}")
        if pose != "head" and not follows:
            missing = "matching" if model.matching_head is None else "depth"
            raise ValueError(
                f"model {model.config.name!r} has no {missing} head, so pose cannot be {pose}; "
                "use pose='head'"
            )
        if consistent_depth is None:
            consistent_depth = pose != "head"
        if consistent_depth and pose == "head":
            raise ValueError(
                "consistent_depth compares keyframes, and pose='head' keeps none; use "
                "pose='geometric' or consistent_depth=False"
            )
        self._model = model
        self._config = model.config
        self._consistent_depth = consistent_depth
        self._resolution = resolution
        self._pose_source = pose
        self._max_gap_s = max_gap_s
        self._preprocess: Preprocessor | None = None  # for images of the size that come
        self._pixels: torch.Tensor | None = None  # of the last frame
        self._unseen: tuple[Undistorter, torch.Tensor] | None = None
        self.forget()

    def forget(self) -> None:
        """Be as new: the next frame is the first of epoch 0, and its camera is the world."""
        self._rules = EpochRules(self._max_gap_s)
        self._pose: HeadPose | Odometry | FusedPose = HeadPose()
        if self._pose_source != "head":
            assert self._model.matching_head is not None
            fused = self._pose_source == "fused"
            self._pose = (FusedPose if fused else Odometry)(self._model.matching_head)
        self._frame_of_keyframe: dict[int, int] = {}  # of this epoch
        self._measured = False  # whether the pose of the last frame was, by keyframes
        self._camera = CameraEstimate(self._config.canonical_focal)
        self._epoch = -1  # of the last frame; the first frame begins epoch 0

    def request_epoch(self, reason: EpochReason = EpochReason.REQUEST) -> None:
        """Begin a new epoch with the next frame; the pose stays continuous."""
        self._rules.request(reason)

    def release(self) -> None:
        """Give back the buffers; they are made anew for the next image."""
        self._preprocess = self._pixels = self._unseen = None

    def check(self, outputs: Outputs) -> None:
        """Refuse what this model cannot give, before anything is touched; ValueError."""
        if outputs.depth and self._model.depth_head is None:
            raise ValueError(
                f"model {self._config.name!r} has no depth head; ask with Outputs(depth=False)"
            )
        if (
            self._wants_pose(outputs)
            and self._pose_source != "geometric"
            and self._model.camera_head is None
        ):
            raise ValueError(
                f"model {self._config.name!r} has no camera head; ask with Outputs(pose=False), "
                "and set consistent_depth=False where pose='fused'"
            )
        for key in outputs.features:
            check_feature(key, self._config)

    def begins(self, frame: Frame) -> EpochReason | None:
        """Why the frame begins a new epoch, or None; only looks."""
        return self._rules.check(frame)

    def model_size(self, frame: Frame) -> tuple[int, int]:
        """(H, W) at which the model sees the frame; ValueError for one too elongated."""
        config = self._config
        return model_size(frame.height, frame.width, config.model_pixels, config.patch_size)

    def begin_epoch(self) -> None:
        """Forget what the epoch taught; the pose goes on."""
        self._camera.reset()
        self._pose.begin_epoch()
        self._frame_of_keyframe.clear()

    def pixels(self, frame: Frame) -> torch.Tensor:
        """The frame as the model sees it, (1, 3, h, w)."""
        source = (frame.height, frame.width)
        if self._preprocess is None or self._preprocess.source_size != source:
            self._preprocess = None  # its buffers go before the new ones come
            backbone = self._model.backbone
            self._preprocess = Preprocessor(
                source, self.model_size(frame), device=backbone.device, dtype=backbone.compute_dtype
            )
        self._pixels = self._preprocess(frame.image, frame.lens)
        return self._pixels

    def wants_camera(self, frame: Frame, outputs: Outputs) -> bool:
        """Whether the camera head must run for this frame."""
        guess_lens = frame.intrinsics is None and (outputs.depth or outputs.pose)
        head_pose = self._wants_pose(outputs) and self._pose_source != "geometric"
        return self._model.camera_head is not None and (guess_lens or head_pose)

    def _wants_pose(self, outputs: Outputs) -> bool:
        """Whether the pose must be found, for its own sake or for that of consistent depth."""
        return outputs.pose or (outputs.depth and self._consistent_depth)

    @property
    def landmarks(self) -> frozenset[int] | None:
        """Frames of the epoch that are keyframes of the pose; None where it is not measured by any.

        For the memory of the network, so that both remember the same frames.
        """
        return frozenset(self._frame_of_keyframe.values()) if self._measured else None

    def accept(self, frame: Frame, reason: EpochReason | None) -> None:
        """The network has seen the frame: it is part of the stream."""
        self._epoch += reason is not None
        self._rules.accept(frame, begins=reason is not None)

    def result(
        self,
        frame: Frame,
        reason: EpochReason | None,
        outputs: Outputs,
        prediction: Prediction,
        *,
        frame_index: int,
        context_frames: int,
        watch: Stopwatch,
    ) -> StreamResult:
        """What the network said of an accepted frame, (1, ...) each, in the camera's own terms."""
        assert self._preprocess is not None
        features, size = prediction.features, self._preprocess.size
        source_camera = self._source_camera(frame, prediction)
        model_camera = source_camera.resized(size[1], size[0])
        pose = None
        self._measured = False
        if self._wants_pose(outputs):
            pose = self._update_pose(frame, prediction, model_camera, frame_index)
            self._note_keyframes(frame_index)
        watch.lap("pose")

        at_source = self._resolution == "source"
        source_size = (frame.height, frame.width)
        depth, confidence = prediction.depth, prediction.depth_confidence
        if depth is not None and confidence is not None and outputs.depth:
            depth, confidence = self._scaled_depth(depth, model_camera), confidence[0].float()
            if self._consistent_depth and not isinstance(self._pose, HeadPose):
                depth = self._pose.agreeing(depth)
            if at_source:
                depth = resize_depth(depth, source_size)
                confidence = resize_confidence(confidence, source_size)
            if frame.lens is not None:
                unseen = self._unseen_by(frame.lens, depth)
                depth = depth.masked_fill(unseen, float("nan"))
                confidence = confidence.masked_fill(unseen, 1.0)
        else:
            depth = confidence = None
        result = StreamResult(
            stamp_ns=frame.stamp_ns,
            epoch=self._epoch,
            frame_index=frame_index,
            epoch_reason=reason,
            context_frames=context_frames,
            metric=self._config.metric and frame.intrinsics is not None,
            intrinsics=source_camera if at_source else model_camera,
            depth=depth,
            confidence=confidence,
            pose=pose if outputs.pose else None,
            features={key: feature_tensor(features, key, self._config) for key in outputs.features},
            grid=features.grid,
            model_size=size,
            source_size=source_size,
            model_to_source=model_to_source(size, source_size),
            watch=watch,
        )
        watch.lap("postprocess")
        return result

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that one frame leaves for the next."""
        return {
            "model": self._config.to_dict(),
            "epoch": self._epoch,
            "rules": self._rules.state_dict(),
            "camera": self._camera.state_dict(),
            "pose_source": type(self._pose).__name__,
            "pose": self._pose.state_dict(),
            "frame_of_keyframe": dict(self._frame_of_keyframe),
        }

    def check_state(self, state: dict[str, Any]) -> None:
        """ValueError when a state belongs to another model or another source of pose."""
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

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state_dict`` was taken."""
        self._rules.load_state_dict(state["rules"])
        self._camera.load_state_dict(state["camera"])
        self._pose.load_state_dict(state["pose"])
        self._frame_of_keyframe = dict(state["frame_of_keyframe"])
        self._epoch = int(state["epoch"])

    def _update_pose(
        self, frame: Frame, prediction: Prediction, model_camera: Intrinsics, frame_index: int
    ) -> Pose:
        if isinstance(self._pose, HeadPose):
            assert prediction.camera is not None
            return self._pose.update(prediction.camera, frame_index)

        def depth() -> torch.Tensor:
            # Odometry needs it for keyframes only, the caller perhaps not at all.
            known = prediction.depth
            if known is None:
                known = self._model.predict(prediction.features, rays=False, camera=False).depth
            assert known is not None
            return self._scaled_depth(known, model_camera)

        assert self._pixels is not None
        seen = (prediction.features.pyramid, luminance(self._pixels), depth, model_camera)
        if isinstance(self._pose, FusedPose):
            assert prediction.camera is not None
            return self._pose.update(*seen, frame.stamp_ns, prediction.camera, frame_index)
        return self._pose.update(*seen, frame.stamp_ns)

    def _note_keyframes(self, frame_index: int) -> None:
        """Which frame each keyframe is; one that was not there before is this one."""
        if isinstance(self._pose, HeadPose):
            return
        self._measured = True
        known = self._frame_of_keyframe
        self._frame_of_keyframe = {
            number: known.get(number, frame_index) for number in self._pose.keyframes
        }

    def _unseen_by(self, lens: Undistorter, depth: torch.Tensor) -> torch.Tensor:
        """Where an undistorted image is black because the lens saw nothing there, (H, W)."""
        if self._unseen is None or self._unseen[0] is not lens:
            seen = torch.from_numpy(lens.seen(depth.shape[0], depth.shape[1]))
            self._unseen = (lens, ~seen.to(depth.device))
        return self._unseen[1]

    def _source_camera(self, frame: Frame, prediction: Prediction) -> Intrinsics:
        """The camera of the frame: told, or what the model has seen of it in this epoch."""
        if frame.intrinsics is not None:
            return frame.intrinsics
        if prediction.camera is not None:
            self._camera.update(prediction.camera)
        return self._camera.intrinsics(frame.width, frame.height)

    def _scaled_depth(self, depth: torch.Tensor, model_camera: Intrinsics) -> torch.Tensor:
        """Depth (1, h, w) of the canonical camera as depth (h, w) of the real one.

        The network judges by size in pixels: the same picture through a lens of twice the focal
        length shows the scene at twice the distance.
        """
        return depth[0].float() * (model_camera.fx / self._config.canonical_fx)
