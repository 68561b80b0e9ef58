# SPDX-License-Identifier: Apache-2.0
"""Compressed depth: RVL against an encoder written number by number after the paper."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnistream_ros.stream.compressed_images import decode_depth, decode_rgb, encoded_size
from omnistream_ros.stream.image_encodings import Fault, ImageError
from omnistream_ros.stream.rvl import decode_rvl

HEADER = struct.pack("<iff", 0, 0.0, 0.0)


def encode_rvl(values: list[int]) -> bytes:
    nibbles: list[int] = []

    def write(number: int) -> None:
        while True:
            low, number = number & 7, number >> 3
            nibbles.append(low | (8 if number else 0))
            if not number:
                return

    at = previous = 0
    while at < len(values):
        start = at
        while at < len(values) and values[at] == 0:
            at += 1
        write(at - start)
        end = at
        while end < len(values) and values[end] != 0:
            end += 1
        write(end - at)
        for value in values[at:end]:
            change = value - previous
            write(2 * change if change >= 0 else -2 * change - 1)
            previous = value
        at = end
    nibbles += [0] * (-len(nibbles) % 8)
    words = [
        int("".join(f"{n:x}" for n in nibbles[i : i + 8]), 16) for i in range(0, len(nibbles), 8)
    ]
    return struct.pack(f"<{len(words)}I", *words)


def test_known_stream() -> None:
    # No zeros, five values: 1, 1, 2, 3, 5; differences 1, 0, 1, 1, 2 are 2, 0, 2, 2, 4 in zigzag.
    stream = struct.pack("<I", 0x05202240)
    assert decode_rvl(stream, 5).tolist() == [1, 1, 2, 3, 5]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.lists(st.integers(1, 65535), max_size=12)), min_size=1
    )
)
def test_what_was_encoded_comes_back(runs: list[tuple[int, list[int]]]) -> None:
    values = [value for zeros, block in runs for value in [0] * zeros + block]
    if values:
        assert decode_rvl(encode_rvl(values), len(values)).tolist() == values


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.integers(1, 2000))
def test_any_bytes_give_that_many_pixels_or_an_error(data: bytes, pixels: int) -> None:
    try:
        decoded = decode_rvl(data, pixels)
    except ValueError:
        return
    assert (decoded.shape, decoded.dtype) == ((pixels,), np.uint16)


def test_depth_by_rvl() -> None:
    stored = np.zeros((30, 40), np.uint16)
    stored[5:25, 3:33] = np.random.default_rng(0).integers(300, 9000, (20, 30))
    stream = encode_rvl(stored.reshape(-1).tolist())
    data = HEADER + struct.pack("<II", 40, 30) + stream
    depth = decode_depth(data, "16UC1; compressedDepth rvl")
    assert np.array_equal(np.isnan(depth), stored == 0)
    assert np.nan_to_num(depth) == pytest.approx(stored / 1000.0, abs=1e-4)
    header = struct.pack("<iff", 0, 1000.0, -10.0)
    inverse = decode_depth(header + data[12:], "32FC1; compressedDepth rvl")
    assert np.array_equal(np.isnan(inverse), stored == 0)
    known = stored > 0
    assert inverse[known] == pytest.approx(1000.0 / (stored[known] + 10.0), rel=1e-5)


@pytest.mark.parametrize("size", [(1280, 720), (3840, 2160)])
def test_rvl_in_which_nothing_is_known(size: tuple[int, int]) -> None:
    """A covered sensor: one run of zeros, a few bytes however large the image is."""
    stream = encode_rvl([0] * (size[0] * size[1]))
    assert len(stream) < 16
    depth = decode_depth(HEADER + struct.pack("<II", *size) + stream, "16UC1; compressedDepth rvl")
    assert depth.shape == size[::-1]
    assert np.isnan(depth).all()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes are too few"),
        (HEADER, "12 bytes are too few"),
        (HEADER + b"abc", "no size"),
        (HEADER + struct.pack("<II", 0, 30) + b"abcd", "0x30 pixels"),
        (HEADER + struct.pack("<II", 2**31, 2**31) + b"abcd", "pixels large"),
        (HEADER + struct.pack("<II", 4, 4), "ends after 0 of 16"),
        (HEADER + struct.pack("<II", 4, 4) + b"\xff" * 8, "RVL stream"),
    ],
)
def test_broken_rvl(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words) as caught:
        decode_depth(data, "16UC1; compressedDepth rvl")
    assert caught.value.fault is Fault.BROKEN_DATA


def test_colour_png_is_no_depth_and_garbage_no_image() -> None:
    png = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    with pytest.raises(ImageError, match="one channel"):
        decode_depth(HEADER + png, "16UC1; compressedDepth png")
    with pytest.raises(ImageError, match="the thing cannot be decoded"):
        decode_rgb(b"junk", "the thing")


def encoded(kind: str, width: int, height: int, *options: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(kind, pixels, list(options))[1].tobytes()


@pytest.mark.parametrize("progressive", [0, 1])
def test_the_size_is_read_without_decoding(progressive: int) -> None:
    for width, height in ((1, 1), (37, 20), (640, 3)):
        jpeg = encoded(".jpg", width, height, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
        assert encoded_size(jpeg) == (width, height)
        assert encoded_size(jpeg + bytes(5000)) == (width, height)  # padded by a driver
        assert encoded_size(encoded(".png", width, height)) == (width, height)


@given(st.integers(0, 10**6), st.booleans())
def test_a_jpeg_that_was_cut_short_has_no_size(cut: int, progressive: bool) -> None:
    jpeg = encoded(".jpg", 30, 20, cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive))
    with pytest.raises(ImageError, match=r"cut short|neither"):
        encoded_size(jpeg[: cut % (len(jpeg) - 1)])


@given(st.binary(max_size=300))
def test_any_bytes_have_a_size_or_are_refused(data: bytes) -> None:
    for start in (b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"):
        try:
            width, height = encoded_size(start + data)
        except ImageError:
            continue
        assert width >= 0
        assert height >= 0


def test_other_formats_are_named() -> None:
    with pytest.raises(ImageError, match="neither JPEG nor PNG") as caught:
        encoded_size(encoded(".bmp", 4, 4))
    assert caught.value.fault is Fault.UNSUPPORTED_ENCODING
