# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct

import bags
import cv2
import numpy as np
import pytest

from omnistream_ros.evaluation.ros_images import (
    compressed_depth,
    compressed_rgb,
    depth_image,
    rgb_image,
)
from omnistream_ros.stream.image_encodings import ImageError

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
SMOOTH = np.stack(np.meshgrid(np.arange(40, 200, 10), np.arange(40, 160, 10)), -1).astype(np.uint8)
SMOOTH = np.concatenate([SMOOTH, np.full((*SMOOTH.shape[:2], 1), 90, np.uint8)], axis=-1)


def grey3(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


CASES = {
    "rgb8": (RGB, RGB),
    "bgr8": (RGB[..., ::-1], RGB),
    "8UC3": (RGB[..., ::-1], RGB),
    "rgba8": (np.dstack([RGB, RGB[..., 0]]), RGB),
    "bgra8": (np.dstack([RGB[..., ::-1], RGB[..., 0]]), RGB),
    "8UC4": (np.dstack([RGB[..., ::-1], RGB[..., 0]]), RGB),
    "mono8": (RGB[..., 0], grey3(RGB[..., 0])),
    "8UC1": (RGB[..., 0], grey3(RGB[..., 0])),
    "mono16": (RGB[..., 0].astype(np.uint16) * 257, grey3(RGB[..., 0])),
    "rgb16": (RGB.astype(np.uint16) * 257, RGB),
    "bgr16": (RGB[..., ::-1].astype(np.uint16) * 257, RGB),
    "rgba16": (np.dstack([RGB, RGB[..., 0]]).astype(np.uint16) * 257, RGB),
    "bgra16": (np.dstack([RGB[..., ::-1], RGB[..., 0]]).astype(np.uint16) * 257, RGB),
}


@pytest.mark.parametrize("encoding", CASES)
@pytest.mark.parametrize("pad", [0, 6])
def test_encodings_give_the_same_rgb(encoding: str, pad: int) -> None:
    pixels, expected = CASES[encoding]
    assert np.array_equal(rgb_image(bags.image(0, pixels, encoding, pad=pad)), expected)


def test_big_endian_is_turned_round() -> None:
    pixels, expected = CASES["rgb16"]
    message = bags.image(0, pixels.astype(">u2"), "rgb16")
    message.is_bigendian = 1
    assert np.array_equal(rgb_image(message), expected)
    depth = bags.image(0, np.array([[1.5, 2.5]], dtype=">f4"), "32FC1")
    depth.is_bigendian = 1
    assert depth_image(depth).tolist() == [[1.5, 2.5]]


@pytest.mark.parametrize(
    ("encoding", "corner"),
    [("bayer_rggb8", "RG"), ("bayer_bggr8", "BG"), ("bayer_gbrg8", "GB"), ("bayer_grbg8", "GR")],
)
def test_bayer_patterns_are_named_by_their_first_row(encoding: str, corner: str) -> None:
    colour = {"R": 200, "G": 120, "B": 40}
    order = corner + {"RG": "GB", "BG": "GR", "GB": "RG", "GR": "BG"}[corner]
    tile = np.array([[colour[order[0]], colour[order[1]]], [colour[order[2]], colour[order[3]]]])
    mosaic = np.tile(tile.astype(np.uint8), (8, 8))
    for pixels, name in (
        (mosaic, encoding),
        (mosaic.astype(np.uint16) * 257, encoding[:-1] + "16"),
    ):
        rgb = rgb_image(bags.image(0, pixels, name))
        assert np.abs(rgb[2:-2, 2:-2].astype(int) - [200, 120, 40]).max() <= 1


@pytest.mark.parametrize(
    "encoding", ["yuv422", "uyvy", "yuv422_yuy2", "yuyv", "nv12", "nv21", "nv24"]
)
def test_yuv_of_a_flat_colour(encoding: str) -> None:
    y, u, v = 120, 90, 170  # video range BT.601
    expected = np.clip(
        [1.164 * (y - 16) + 1.596 * (v - 128),
         1.164 * (y - 16) - 0.813 * (v - 128) - 0.391 * (u - 128),
         1.164 * (y - 16) + 2.018 * (u - 128)], 0, 255,
    )  # fmt: skip
    if encoding in ("yuv422", "uyvy"):
        data = np.tile(np.array([u, y, v, y], np.uint8), (4, 3))
    elif encoding in ("yuv422_yuy2", "yuyv"):
        data = np.tile(np.array([y, u, y, v], np.uint8), (4, 3))
    else:
        rows = 8 if encoding == "nv24" else 2
        pair = [u, v] if encoding == "nv12" else [v, u]
        chroma = np.tile(np.array(pair, np.uint8), (rows, 3))
        data = np.vstack([np.full((4, 6), y, np.uint8), chroma])
    message = bags.image(0, data, encoding)
    message.height, message.width = 4, 6
    if encoding == "nv24":
        message.step = 6
    rgb = rgb_image(message)
    assert rgb.shape == (4, 6, 3)
    assert np.abs(rgb.astype(float) - expected).max() <= 2.5


def test_depth_units_and_unknowns() -> None:
    millimetres = np.array([[0, 1, 1500, 65535]], dtype=np.uint16)
    depth = depth_image(bags.image(0, millimetres, "16UC1"))
    assert depth.dtype == np.float32
    assert np.isnan(depth[0, 0])
    assert depth[0, 1:] == pytest.approx([0.001, 1.5, 65.535])
    metres = np.array([[np.nan, np.inf, -1.0, 0.0, 2.5]], dtype=np.float32)
    depth = depth_image(bags.image(0, metres, "32FC1"))
    assert np.isnan(depth[0, :4]).all()
    assert depth[0, 4] == 2.5
    with pytest.raises(ImageError, match="not depth"):
        depth_image(bags.image(0, RGB, "rgb8"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoding": "zebra8"}, "encoding 'zebra8' cannot be read"),
        ({"encoding": "32FC3"}, "cannot be read"),
        ({"encoding": ""}, "cannot be read"),
        ({"height": 0}, "8x0 pixels"),
        ({"width": 0}, "0x6 pixels"),
        ({"step": 10}, "step is 10 bytes but a row"),
        ({"height": 7}, "take 168"),
        ({"data": np.zeros(0, np.uint8)}, "data has 0 bytes"),
    ],
)
def test_messages_that_contradict_themselves(change: dict, words: str) -> None:
    message = bags.image(0, RGB, "rgb8")
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(ImageError, match=words):
        rgb_image(message)


def test_float_images_are_not_colours() -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        rgb_image(bags.image(0, np.ones((4, 4), np.float32), "32FC1"))


def test_last_row_may_lack_its_padding() -> None:
    message = bags.image(0, RGB, "rgb8", pad=6)
    message.data = message.data[:-6]
    assert np.array_equal(rgb_image(message), RGB)


def test_compressed_images() -> None:
    assert np.array_equal(compressed_rgb(bags.compressed(0, RGB, ".png")), RGB)
    jpeg = compressed_rgb(bags.compressed(0, SMOOTH, ".jpg"))
    assert np.abs(jpeg.astype(int) - SMOOTH).mean() < 6
    for data in (np.zeros(0, np.uint8), np.arange(50, dtype=np.uint8)):
        broken = bags.compressed(0, RGB)
        broken.data = data
        with pytest.raises(ImageError, match="cannot be decoded"):
            compressed_rgb(broken)


def compressed_depth_message(format_: str, header: bytes, pixels: np.ndarray):
    message = bags.compressed(0, RGB)
    message.format = format_
    png = cv2.imencode(".png", pixels)[1].tobytes()
    message.data = np.frombuffer(header + png, np.uint8)
    return message


def test_compressed_depth() -> None:
    stored = np.array([[0, 1000, 2500]], dtype=np.uint16)
    for format_, header in (
        ("16UC1; compressedDepth png", struct.pack("<iff", 0, 0.0, 0.0)),
        ("16UC1; png compressed", b""),
    ):
        depth = compressed_depth(compressed_depth_message(format_, header, stored))
        assert np.isnan(depth[0, 0])
        assert depth[0, 1:] == pytest.approx([1.0, 2.5])
    # The transport's own quantisation of inverse depth, forwards.
    a, b = 100.0 * 101.0, 1.0 - 101.0 * 100.0 / 10.0
    metres = np.array([[0.8, 2.0, 7.5]])
    quantised = np.r_[0, np.rint(a / metres[0] + b)].astype(np.uint16)[None]
    message = compressed_depth_message(
        "32FC1; compressedDepth png", struct.pack("<iff", 0, a, b), quantised
    )
    depth = compressed_depth(message)
    assert np.isnan(depth[0, 0])
    assert depth[0, 1:] == pytest.approx(metres[0], rel=2e-3)
