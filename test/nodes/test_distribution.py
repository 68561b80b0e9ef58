# SPDX-License-Identifier: Apache-2.0
"""The distribution's packages and what stands in for them give the same result."""

from __future__ import annotations

import array
import sys
import types

import numpy as np
import pytest
from geometry_msgs.msg import Transform
from sensor_msgs.msg import Image

from omnistream_ros.nodes import distribution
from omnistream_ros.stream.geometry import rigid, rotation_from_vector
from omnistream_ros.stream.image_encodings import ENCODINGS

RNG = np.random.default_rng(2)
MOTION = rigid(rotation_from_vector(np.array([0.5, -2.0, 1.0])), np.array([1.0, 2.0, 3.0]))


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch):
    """Switches to the stand-in of an installed package; skips where it is not installed."""

    def switch(name: str) -> None:
        if getattr(distribution, f"_{name}") is None:
            pytest.skip(f"{name} is not installed here: there is nothing to compare with")
        monkeypatch.setattr(distribution, f"_{name}", None)

    return switch


def random_image(encoding: str) -> Image:
    image = Image(height=6, width=10, encoding=encoding, step=ENCODINGS[encoding].row_bytes(10) + 5)
    image.data = array.array("B", RNG.bytes(image.step * 6))
    return image


@pytest.mark.parametrize("encoding", sorted(distribution._BRIDGED))
def test_cv_bridge(without, encoding: str) -> None:
    image = random_image(encoding)
    installed = distribution.message_to_rgb8(image)
    without("cv_bridge")
    np.testing.assert_array_equal(distribution.message_to_rgb8(image), installed)


def test_tf_transformations(without) -> None:
    def there_and_back() -> tuple[Transform, np.ndarray]:
        message = Transform()
        distribution.fill_transform(MOTION, message.translation, message.rotation)
        return message, distribution.motion_from_transform(message)

    message, motion = there_and_back()
    without("tf_transformations")
    other, other_motion = there_and_back()
    np.testing.assert_allclose(other_motion, motion, atol=1e-12)
    np.testing.assert_allclose(other.rotation.w, message.rotation.w, atol=1e-12)


def test_stand_in_of_tf_transformations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "_tf_transformations", None)
    message = Transform()
    distribution.fill_transform(MOTION, message.translation, message.rotation)
    np.testing.assert_allclose(distribution.motion_from_transform(message), MOTION, atol=1e-12)
    message.translation.x = float("nan")
    with pytest.raises(ValueError, match="finite"):
        distribution.motion_from_transform(message)


@pytest.mark.parametrize("fault", ["raises", "converts wrongly"])
def test_broken_cv_bridge_is_not_used(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """One built for another numpy imports and then fails in every call."""

    class CvBridge:
        def imgmsg_to_cv2(self, message: Image, desired_encoding: str) -> np.ndarray:
            if fault == "raises":
                raise AttributeError("_ARRAY_API not found")
            return np.zeros((message.height, message.width, 3), np.uint8)

    module = types.ModuleType("cv_bridge")
    module.CvBridge = CvBridge  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv_bridge", module)
    assert distribution._working_cv_bridge() is None


def test_byte_array_takes_any_contiguous_array() -> None:
    values = RNG.normal(size=(3, 4)).astype(np.float32)
    assert distribution.byte_array(values).tobytes() == values.tobytes()
    assert len(distribution.byte_array(np.zeros((0, 3), np.uint8))) == 0
