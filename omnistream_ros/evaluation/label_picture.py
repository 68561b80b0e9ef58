# SPDX-License-Identifier: Apache-2.0
"""`omnistream label`: what a recording shows, in words of the user's choosing, as a picture.

A picture of frames spread over the recording, each beside its labels: every patch in the colour of
the word that is nearest to it, paler where the choice was close; below, the share of every word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from omnistream_ros.evaluation.recordings import RecordingError, open_recording
from omnistream_ros.model import load_model
from omnistream_ros.stream.open_vocabulary import OpenVocabulary
from omnistream_ros.stream.result import FeatureKey, FeatureKind, Outputs
from omnistream_ros.stream.session import StreamSession

_WIDTH = 320  # pixels of one picture
_LINE = 24  # pixels of a line of the legend
_COLUMNS = 2  # frames side by side
_GAP = 6  # pixels of white around a frame and its labels
_KEY = FeatureKey(-1, FeatureKind.PATCH, normed=True)


@dataclass(frozen=True)
class LabelledFrame:
    """image (H, W, 3) uint8 RGB; indices (h, w) into the words, probability (h, w) of each."""

    image: np.ndarray
    indices: np.ndarray
    probability: np.ndarray


def label_recording(
    path: Path,
    words: Sequence[str],
    target: Path,
    *,
    model: str = "omnistream-nano",
    count: int = 6,
    encoder: Callable[[Sequence[str]], Tensor] | None = None,
) -> dict[str, float]:
    """Label `count` frames of a recording, write the picture, and return each word's share of it.

    The frames between them are streamed as well: the past belongs to what a frame means.

    Raises:
        ModelError, ValueError, SentenceEncoderError: see `load_model` and `OpenVocabulary`; or the
            file is to be no picture, or a word stands twice.
        RecordingError: no frames.
        OSError: the picture cannot be written.
    """
    if target.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ValueError(f"{target}: a picture is a .png or .jpg file")
    if twice := {word for word in words if list(words).count(word) > 1}:
        raise ValueError(f"words to choose among must differ, given twice: {', '.join(twice)}")
    network, _ = load_model(model)
    vocabulary = OpenVocabulary(network, words, encoder)
    recording = open_recording(path)
    total = recording.info().frames or sum(1 for _ in recording.frames())
    wanted = set(np.linspace(0, total - 1, min(count, total)).round().astype(int).tolist())
    session = StreamSession(network)
    outputs = Outputs(depth=False, pose=False, features=(_KEY,))
    shown = []
    for number, frame in enumerate(recording.frames()):
        result = session.step(frame, outputs)
        if number in wanted:
            found = vocabulary(result.features[_KEY])
            shown.append(
                LabelledFrame(frame.image, found.indices.numpy(), found.probability.numpy())
            )
    if not shown:
        raise RecordingError(f"{path}: no image to label")
    target.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(target), draw(shown, vocabulary.words)):
        raise OSError(f"{target}: the picture cannot be written")
    return _shares(shown, vocabulary.words)


def _shares(frames: Sequence[LabelledFrame], words: Sequence[str]) -> dict[str, float]:
    seen = np.concatenate([frame.indices.ravel() for frame in frames])
    return {word: float((seen == index).mean()) for index, word in enumerate(words)}


def draw(frames: Sequence[LabelledFrame], words: Sequence[str]) -> np.ndarray:
    """The frames beside their labels over a legend, (H, W, 3) uint8 BGR."""
    colours = _colours(len(words))
    edge = ((_GAP, 0), (_GAP, _GAP), (0, 0))
    cells = [
        np.pad(np.hstack(_pair(frame, colours)), edge, constant_values=255) for frame in frames
    ]
    height = max(cell.shape[0] for cell in cells)
    cells = [_padded(cell, height) for cell in cells]
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % _COLUMNS)
    rows = [np.hstack(cells[i : i + _COLUMNS]) for i in range(0, len(cells), _COLUMNS)]
    said = [f"{word} {100 * share:.0f} %" for word, share in _shares(frames, words).items()]
    return np.vstack([*rows, _legend(said, colours, rows[0].shape[1])])


def _pair(frame: LabelledFrame, colours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    height = round(_WIDTH * frame.image.shape[0] / frame.image.shape[1])
    image = cv2.resize(frame.image, (_WIDTH, height), interpolation=cv2.INTER_AREA)[..., ::-1]
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    grey = 60 + grey.astype(np.float32) * (195 / 255)  # colours are seen on dark things too
    share = 0.65 * frame.probability[..., None]  # sure: strong, undecided: pale
    layers = np.concatenate((colours[frame.indices] * share, share), -1).astype(np.float32)
    layers = cv2.resize(layers, (_WIDTH, height), interpolation=cv2.INTER_LINEAR)
    mixed = layers[..., :3] + grey * (1 - layers[..., 3:])
    return np.asarray(image), mixed.clip(0, 255).astype(np.uint8)


def _colours(count: int) -> np.ndarray:
    """(count, 3) BGR, as far apart in hue as there is room."""
    hsv = np.full((1, count, 3), 255, np.uint8)
    hsv[0, :, 0] = np.arange(count) * 180 // count
    hsv[0, 1::2, 2] = 190  # neighbours in hue differ in brightness
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0].astype(np.float32)


def _legend(words: Sequence[str], colours: np.ndarray, width: int) -> np.ndarray:
    across = max(1, width // 200)
    lines = -(-len(words) // across)
    legend = np.full((_LINE * lines + 8, width, 3), 255, np.uint8)
    for index, (word, colour) in enumerate(zip(words, colours.tolist(), strict=True)):
        x, y = 200 * (index % across) + 8, _LINE * (index // across) + 6
        cv2.rectangle(legend, (x, y), (x + 14, y + 14), colour, cv2.FILLED)
        place = (x + 20, y + 12)
        cv2.putText(legend, word, place, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return legend


def _padded(cell: np.ndarray, height: int) -> np.ndarray:
    return np.pad(cell, ((0, height - cell.shape[0]), (0, 0), (0, 0)), constant_values=255)
