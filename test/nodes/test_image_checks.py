# SPDX-License-Identifier: Apache-2.0
"""Encodings against numpy written out by hand; checks that take any message and never crash."""

from __future__ import annotations

import array

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ros_processes import camera_info
from sensor_msgs.msg import Image

from omnistream_ros.nodes.distribution import message_to_rgb8
from omnistream_ros.nodes.image_checks import (
    BadImageError,
    Drop,
    Source,
    SourceGate,
    check_image,
)
from omnistream_ros.stream.calibration import CalibrationError, calibration_of
from omnistream_ros.stream.image_encodings import ENCODINGS

HEIGHT, WIDTH = 6, 10
RNG = np.random.default_rng(1)


def message(values: np.ndarray, encoding: str, *, padding: int = 0, big: bool = False) -> Image:
    """An image message of rows (H, W[, C]), each followed by ``padding`` bytes of rubbish."""
    rows = values.astype(values.dtype.newbyteorder(">" if big else "<"))
    rows = np.ascontiguousarray(rows).reshape(len(values), -1).view(np.uint8)
    padded = RNG.integers(0, 256, (rows.shape[0], rows.shape[1] + padding), np.uint8)
    padded[:, : rows.shape[1]] = rows
    height = HEIGHT if encoding.startswith("nv") else len(values)
    image = Image(height=height, width=values.shape[1], encoding=encoding)
    image.step = padded.shape[1]
    image.is_bigendian = int(big)
    image.data = array.array("B", padded.tobytes())
    return image


def to_8_bit(values: np.ndarray) -> np.ndarray:
    return np.rint(values.astype(np.float64) * (255 / 65535)).astype(np.uint8)


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("name", "channels", "order"),
    [
        ("rgb", 3, (0, 1, 2)),
        ("bgr", 3, (2, 1, 0)),
        ("rgba", 4, (0, 1, 2)),
        ("bgra", 4, (2, 1, 0)),
        ("mono", 1, (0, 0, 0)),
    ],
)
def test_interleaved_encodings(
    name: str, channels: int, order: tuple[int, ...], bits: int, big: bool, padding: int
) -> None:
    dtype = np.uint8 if bits == 8 else np.uint16
    values = RNG.integers(0, 2**bits, (HEIGHT, WIDTH, channels), dtype)
    image = message(values, f"{name}{bits}", padding=padding, big=big)
    check_image(image)
    expected = values[..., list(order)]
    expected = expected if bits == 8 else to_8_bit(expected)
    np.testing.assert_array_equal(message_to_rgb8(image), expected)


def test_all_16_bit_values_round_to_nearest() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    rgb = message_to_rgb8(message(values, "mono16"))
    np.testing.assert_array_equal(rgb[..., 0], to_8_bit(values))


def test_rgb8_is_a_view_of_the_message() -> None:
    image = message(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), "rgb8", padding=5)
    rgb = message_to_rgb8(image)
    assert np.shares_memory(rgb, np.frombuffer(image.data, np.uint8))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_of_a_flat_colour(pattern: str, bits: int) -> None:
    """Demosaicing a single colour gives that colour wherever the pattern was read correctly."""
    colour = {"r": 200, "g": 120, "b": 30}
    scale, dtype = (1, np.uint8) if bits == 8 else (257, np.uint16)
    tile = np.array([colour[c] * scale for c in pattern], dtype).reshape(2, 2)
    values = np.tile(tile, (HEIGHT // 2, WIDTH // 2))
    rgb = message_to_rgb8(message(values, f"bayer_{pattern}{bits}", padding=3))
    np.testing.assert_array_equal(rgb, np.broadcast_to([200, 120, 30], rgb.shape))


def bt601(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """RGB of limited-range BT.601, in float64 (ITU-R BT.601-7, 2.5)."""
    y, u, v = 1.164383 * (y - 16.0), u - 128.0, v - 128.0
    rgb = np.stack([y + 1.596027 * v, y - 0.391762 * u - 0.812968 * v, y + 2.017232 * u], -1)
    return rgb.clip(0, 255)


@pytest.mark.parametrize("encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12", "nv21"])
def test_yuv_encodings(encoding: str) -> None:
    y = RNG.integers(16, 236, (HEIGHT, WIDTH), np.uint8)
    if encoding.startswith("nv"):
        u, v = RNG.integers(64, 192, (2, HEIGHT // 2, WIDTH // 2), np.uint8)
        pair = (u, v) if encoding == "nv12" else (v, u)
        chroma = np.stack(pair, -1).reshape(HEIGHT // 2, WIDTH)
        values = np.vstack([y, chroma])
        u, v = (c.repeat(2, 0).repeat(2, 1) for c in (u, v))
    else:
        u, v = RNG.integers(64, 192, (2, HEIGHT, WIDTH // 2), np.uint8)
        chroma = np.stack([u, v], -1).reshape(HEIGHT, WIDTH)
        first = (chroma, y) if encoding in ("yuv422", "uyvy") else (y, chroma)
        values = np.stack(first, -1)
        u, v = (c.repeat(2, 1) for c in (u, v))
    image = message(values, encoding, padding=4)
    check_image(image)
    rgb = message_to_rgb8(image).astype(np.float64)
    np.testing.assert_allclose(rgb, bt601(y.astype(float), u, v), atol=2.0)


def test_every_listed_encoding_is_converted() -> None:
    for name, layout in ENCODINGS.items():
        image = Image(height=HEIGHT, width=WIDTH, encoding=name, step=layout.row_bytes(WIDTH))
        image.data = array.array("B", bytes(image.step * layout.rows(HEIGHT)))
        check_image(image)
        rgb = message_to_rgb8(image)
        assert (rgb.shape, rgb.dtype) == ((HEIGHT, WIDTH, 3), np.uint8), name


@settings(max_examples=300, deadline=None)
@given(
    encoding=st.sampled_from([*ENCODINGS, "", "32FC1", "8UC3", "\udcff"]),
    height=st.one_of(st.integers(0, 20), st.integers(0, 2**32 - 1)),
    width=st.one_of(st.integers(0, 20), st.integers(0, 2**32 - 1)),
    step=st.one_of(st.integers(0, 200), st.integers(0, 2**32 - 1)),
    size=st.integers(0, 4000),
)
def test_what_passes_the_check_can_be_read(
    encoding: str, height: int, width: int, step: int, size: int
) -> None:
    """Whatever a message claims: a clear refusal, or an image of the size it claims."""
    image = Image(height=height, width=width, step=step)
    image._encoding = encoding  # the setter would refuse some of these
    image.data = array.array("B", bytes(size))
    try:
        check_image(image)
    except BadImageError:
        return
    assert message_to_rgb8(image).shape == (height, width, 3)


def test_camera_info_with_binning_and_region_of_interest() -> None:
    """A point seen by the full sensor falls on the pixel that the intrinsics say."""
    info = camera_info(640, 480, focal=500.0)
    info.k[2], info.k[5] = 300.0, 250.0
    info.binning_x, info.binning_y = 2, 4
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 100, 40, 400, 320
    calibration = calibration_of(info, rectified=False)
    assert calibration is not None
    camera = calibration.intrinsics
    assert (camera.width, camera.height) == (200, 80)
    x, y = 0.31, -0.12
    u_sensor, v_sensor = 500.0 * x + 300.0, 500.0 * y + 250.0
    # pixel areas: sensor column c covers [c - 0.5, c + 0.5]
    u = (u_sensor + 0.5 - 100) / 2 - 0.5
    v = (v_sensor + 0.5 - 40) / 4 - 0.5
    assert camera.fx * x + camera.cx == pytest.approx(u)
    assert camera.fy * y + camera.cy == pytest.approx(v)


def test_rectified_images_use_the_projection_matrix() -> None:
    info = camera_info()
    info.p[0], info.p[2], info.p[5], info.p[6] = 40.0, 30.0, 41.0, 20.0
    camera = calibration_of(info, rectified=True).intrinsics
    assert (camera.fx, camera.cx, camera.fy, camera.cy) == (40.0, 30.0, 41.0, 20.0)


def test_uncalibrated_camera_is_unknown_and_nonsense_is_refused() -> None:
    info = camera_info()
    info.k = [0.0] * 9
    assert calibration_of(info, rectified=False) is None
    info = camera_info()
    info.k[4] = -1.0
    with pytest.raises(CalibrationError, match="fy must be positive"):
        calibration_of(info, rectified=False)
    info = camera_info()
    info.d[1] = float("nan")
    with pytest.raises(CalibrationError, match="not finite"):
        calibration_of(info, rectified=False)


def admit(gate: SourceGate, stamps: list[int], **source: object) -> list[bool]:
    """Whether each stamp in turn was admitted; 1 s of monotonic time between them."""
    admitted = []
    for stamp in stamps:
        try:
            gate.admit(Source(64, 48, "camera"), stamp, 0.0, 1.0)
            admitted.append(True)
        except BadImageError:
            admitted.append(False)
    return admitted


def test_gate_takes_a_jump_for_a_jump_and_a_late_image_for_late() -> None:
    assert admit(SourceGate(), [10, 20, 15, 30]) == [True, True, False, True]
    # a loop costs one image; then time runs on from there
    assert admit(SourceGate(), [10, 20, 1, 2, 3]) == [True, True, False, True, True]
    # two interleaved clocks: only the first one's images pass
    assert admit(SourceGate(), [100, 5, 110, 6, 120, 7]) == [True, False] * 3
    assert admit(SourceGate(), [0, 0, 0]) == [True, False, False]


@given(st.lists(st.integers(0, 50), max_size=60))
def test_gate_never_admits_what_does_not_advance_unless_time_jumped(stamps: list[int]) -> None:
    """Between two jumps the admitted stamps increase, and each jump follows a refused image."""
    last, refused_before = -1, False
    for stamp, passed in zip(stamps, admit_all(stamps), strict=True):
        if passed:
            assert stamp > last or refused_before
            last = stamp
        refused_before = not passed


def admit_all(stamps: list[int]) -> list[bool]:
    return admit(SourceGate(), stamps)


def test_gate_gives_the_topic_to_another_camera_after_silence() -> None:
    gate = SourceGate()
    one, two = Source(64, 48, "a"), Source(64, 48, "b")
    gate.admit(one, 1, 0.0, 1.0)
    with pytest.raises(BadImageError, match="two publishers"):
        gate.admit(two, 2, 0.9, 1.0)
    gate.admit(two, 2, 1.0, 1.0)
    with pytest.raises(BadImageError):
        gate.admit(one, 3, 1.5, 1.0)


def test_opencv_is_the_only_colour_authority() -> None:
    """Same bytes as OpenCV's own conversion, which is what cv_bridge calls."""
    values = RNG.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
    rgb = message_to_rgb8(message(values, "bayer_grbg8"))
    np.testing.assert_array_equal(rgb, cv2.cvtColor(values, cv2.COLOR_BayerGRBG2RGB))


def test_a_huge_raw_image_is_refused() -> None:
    huge = Image(encoding="mono8", height=10_000, width=10_000, step=10_000)
    huge.data = array.array("B", bytes(10**8))
    with pytest.raises(BadImageError, match="at most") as refused:
        check_image(huge)
    assert refused.value.reason is Drop.UNSUPPORTED_SIZE
