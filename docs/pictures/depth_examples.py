# SPDX-License-Identifier: Apache-2.0
"""The picture of the model card: how good depth looks, and how bad.

    python docs/pictures/depth_examples.py RECORDING... [--out FILE]

A row for each recording with true depth: the frame at the better quarter of AbsRel without
alignment, the median one and the worst; of each the input, the depth that the stream gives and the
truth in the same colours (near is bright), unknown in grey. Without `--out` it replaces
docs/models/omnistream-nano-depth.jpg.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from omnistream_ros.evaluation.recordings import open_recording, with_depth
from omnistream_ros.model import load_model
from omnistream_ros.stream.depth_resize import resize_depth
from omnistream_ros.stream.session import StreamSession

SIZE = (180, 135)  # width and height of one picture
_LINE = 16  # pixels of the words above a row
_GREY = 96
_KNOWN = 0.3  # share of a frame's pixels whose depth must be known for it to be shown


@dataclass(frozen=True)
class Shown:
    """One frame: image (H, W, 3) RGB, depth and truth (H, W) metres, NaN unknown."""

    image: np.ndarray
    depth: np.ndarray
    truth: np.ndarray
    abs_rel: float


def examples(path: Path, model: str) -> list[Shown]:
    """The frame at the better quarter, the median one and the worst of a recording."""
    recording = open_recording(path)
    session = StreamSession(load_model(model)[0])
    frames = []
    for frame, true in with_depth(recording.frames(), recording.depths()):
        depth = session.step(frame).depth
        if true is None or depth is None:
            continue
        ours = resize_depth(depth, true.depth.shape[:2]).numpy()
        known = np.isfinite(true.depth) & (true.depth > 0) & np.isfinite(ours)
        if known.mean() < _KNOWN:
            continue
        error = np.abs(ours - true.depth)[known] / true.depth[known]
        truth = np.where(known, true.depth, np.nan)
        frames.append(Shown(_small(frame.image), _small(ours), _small(truth), float(error.mean())))
    if not frames:
        raise SystemExit(f"{path}: no frame of which enough depth is known")
    frames.sort(key=lambda shown: shown.abs_rel)
    return [frames[len(frames) // 4], frames[len(frames) // 2], frames[-1]]


def row(name: str, shown: list[Shown]) -> np.ndarray:
    """The words and the nine pictures, (H, W, 3) BGR."""
    pictures = []
    for one in shown:
        near, far = np.nanpercentile(one.truth, (2, 98))
        pictures += [
            one.image[..., ::-1],
            *(_coloured(d, near, far) for d in (one.depth, one.truth)),
        ]
        words = f"AbsRel {one.abs_rel:.2f}"
        cv2.putText(pictures[-2], words, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1)
    strip = np.hstack(pictures)
    above = np.full((_LINE, strip.shape[1], 3), 255, np.uint8)
    words = f"{name}: input, depth, truth; the better quarter, the median frame, the worst"
    cv2.putText(above, words, (4, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([above, strip])


def _small(image: np.ndarray) -> np.ndarray:
    way = cv2.INTER_AREA if image.ndim == 3 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(image, SIZE, interpolation=way))


def _coloured(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    inverse = (1 / np.clip(depth, near, far) - 1 / far) / max(1 / near - 1 / far, 1e-9)
    levels = (np.nan_to_num(inverse) * 255).astype(np.uint8)
    colours = np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO))
    colours[~np.isfinite(depth)] = _GREY
    return colours


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recordings", nargs="+", type=Path)
    default = Path(__file__).resolve().parents[1] / "models" / "omnistream-nano-depth.jpg"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--model", default="omnistream-nano")
    args = parser.parse_args()
    rows = [row(path.resolve().name, examples(path, args.model)) for path in args.recordings]
    cv2.imwrite(str(args.out), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
