# SPDX-License-Identifier: Apache-2.0
"""`omnistream probe`: all probes on all models that are compared, and the table of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from omnistream_ros.model import load_model
from omnistream_ros.training.annotations import CLASSES, UNKNOWN
from omnistream_ros.training.camera_path import MOTIONS
from omnistream_ros.training.language_alignment import patch_labels
from omnistream_ros.training.pretrained import pretrained_trunk
from omnistream_ros.training.probes import attentive, linear
from omnistream_ros.training.probes.features import (
    PATCH,
    Extractor,
    ProbeClip,
    probe_clips,
    single_frames,
    streamed,
    trunk_alone,
)
from omnistream_ros.training.probes.propagation import propagate
from omnistream_ros.training.probes.region_boundary import SequenceScore, score
from omnistream_ros.training.probes.video_sequences import (
    davis_sequences,
    rendered_sequences,
)
from omnistream_ros.training.room import SIZES

FRAMES = 16
_ROOMS = list(SIZES)
_MOTIONS = list(MOTIONS)


@dataclass(frozen=True)
class ProbeScores:
    """What one model's frozen features know; shares from 0 to 1, NaN where not asked.

    room: accuracy of the kind of room from the mean patch of a frame, linear.
    segments: mean IoU of classes per patch, linear; segments_accuracy beside it.
    motion: accuracy of the kind of camera motion from every second of 16 frames, attentive.
    rendered_j_and_f, davis_j_and_f: label propagation.
    """

    model: str
    room: float
    segments: float
    segments_accuracy: float
    motion: float
    rendered_j_and_f: float
    davis_j: float = float("nan")
    davis_f: float = float("nan")
    davis_j_and_f: float = float("nan")


@dataclass(frozen=True)
class ProbeSettings:
    """clips: folder of rendered clips with boxes, at most `count` of them; davis: folder of DAVIS
    2017, if there; `davis_pixels` of its frames as the models see them."""

    clips: Path
    count: int = 300
    davis: Path | None = None
    davis_pixels: int = 480 * 848
    motion_steps: int = 300
    seed: int = 0


def extractors(source: str | Path) -> dict[str, Extractor]:
    """The models that are compared, by the names they have in the table.

    Raises:
        ModelError, PretrainedWeightsError: weights are missing; says which.
    """
    model, card = load_model(source)
    return {
        card.name: streamed(model),
        f"{card.name}, no cache": single_frames(model),
        "EfficientNet-lite0 trunk alone": trunk_alone(pretrained_trunk()),
    }


def probe(
    models: dict[str, Extractor],
    settings: ProbeSettings,
    report: Callable[[str], None] = print,
) -> list[ProbeScores]:
    """Runs every probe on every model.

    Raises:
        ClipError, SequenceError: the data is missing or not what it should be.
    """
    clips = list(probe_clips(settings.clips, settings.count, FRAMES))
    tested = sum(clip.tested for clip in clips)
    report(f"{len(clips)} clips, {tested} of them for testing")
    truth = [_truth(clip) for clip in clips]
    videos = list(rendered_sequences(clip for clip in clips if clip.tested))
    scores = []
    for name, extract in models.items():
        began = time.monotonic()
        tokens = torch.stack([extract(clip.pixels()).half() for clip in clips])  # (N, T, P, C)
        report(f"{name}: features of {tokens.shape[0] * tokens.shape[1]} frames")
        found = ProbeScores(
            name,
            room=_room(tokens, clips),
            **_segments(tokens, truth, clips),
            motion=_motion(tokens, clips, settings),
            rendered_j_and_f=_carried(videos, extract, 0).j_and_f,
        )
        if settings.davis is not None:
            davis = _carried(davis_sequences(settings.davis), extract, settings.davis_pixels)
            values = {"davis_j": davis.j, "davis_f": davis.f, "davis_j_and_f": davis.j_and_f}
            found = ProbeScores(**{**asdict(found), **values})
        scores.append(found)
        report(f"{name}: {_row(found)}  ({time.monotonic() - began:.0f} s)")
    return scores


def _split(clips: Sequence[ProbeClip]) -> tuple[Tensor, Tensor]:
    tested = torch.tensor([clip.tested for clip in clips])
    return ~tested, tested


def _truth(clip: ProbeClip) -> Tensor:
    """Classes of the patches of the middle and the last frame, (2, P)."""
    labels = clip.labels_of(_LOOKED_AT, PATCH)
    return torch.from_numpy(patch_labels(labels.classes, UNKNOWN))


_LOOKED_AT = [FRAMES // 2, FRAMES - 1]


def _room(tokens: Tensor, clips: Sequence[ProbeClip]) -> float:
    """Of the last frame, which has seen the most."""
    pooled = tokens[:, -1].float().mean(dim=1)  # (N, C)
    true = torch.tensor([_ROOMS.index(clip.annotation.room.kind) for clip in clips])
    train, test = _split(clips)
    fitted = linear.fit(pooled[train], true[train], len(_ROOMS), decay=0.05)
    return linear.accuracy(fitted(pooled[test]), true[test])


def _segments(
    tokens: Tensor, truth: Sequence[Tensor], clips: Sequence[ProbeClip]
) -> dict[str, float]:
    features = tokens[:, _LOOKED_AT].float()  # (N, 2, P, C)
    true = torch.stack(list(truth))  # (N, 2, P)
    train, test = _split(clips)
    known = true != UNKNOWN
    learn, ask = (known & part[:, None, None] for part in (train, test))
    fitted = linear.fit(features[learn], true[learn], len(CLASSES))
    found = fitted(features[ask])
    return {
        "segments": linear.mean_iou(found, true[ask], len(CLASSES)),
        "segments_accuracy": linear.accuracy(found, true[ask]),
    }


def _motion(tokens: Tensor, clips: Sequence[ProbeClip], settings: ProbeSettings) -> float:
    true = torch.tensor([_MOTIONS.index(clip.motion) for clip in clips])
    train, test = _split(clips)
    tokens = tokens[:, 1::2]  # every second frame: half the cost, and motion enough
    fitted = attentive.fit(
        tokens[train], true[train], len(_MOTIONS), steps=settings.motion_steps, seed=settings.seed
    )
    return linear.accuracy(attentive.classify(fitted, tokens[test]), true[test])


def _carried(videos, extract: Extractor, pixels: int) -> SequenceScore:  # type: ignore[no-untyped-def]
    pairs = []
    for video in videos:
        size = pixels or video.images.shape[1] * video.images.shape[2]
        pairs.append((propagate(video, extract, size), video.masks))
    return score(pairs)


def _row(scores: ProbeScores) -> str:
    return (
        f"room {scores.room:.3f}  segments mIoU {scores.segments:.3f}  motion {scores.motion:.3f}  "
        f"J&F {scores.rendered_j_and_f:.3f}"
    )


def as_markdown(scores: Sequence[ProbeScores]) -> str:
    """The table of docs/probes.md."""
    columns = ("room", "patches: mIoU", "accuracy", "motion", "J&F rendered", "J&F DAVIS")
    lines = [f"| features | {' | '.join(columns)} |", "|---|---|---|---|---|---|---|"]
    for s in scores:
        davis = "-" if s.davis_j_and_f != s.davis_j_and_f else f"{100 * s.davis_j_and_f:.1f}"
        values = (s.room, s.segments, s.segments_accuracy, s.motion, s.rendered_j_and_f)
        cells = " | ".join(f"{100 * value:.1f}" for value in values)
        lines.append(f"| {s.model} | {cells} | {davis} |")
    return "\n".join(lines)


def write(
    scores: Sequence[ProbeScores], out: Path, command: str, note: str, page: Path | None = None
) -> None:
    """probes.json and probes.md in `out`; the table also into `page`, between its two marks.

    Raises:
        ValueError: the page has no such marks.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "probes.json").write_text(json.dumps([asdict(s) for s in scores], indent=1) + "\n")
    table = f"{as_markdown(scores)}\n\n{note}\n\n`{command}`\n"
    (out / "probes.md").write_text(table)
    if page is not None:
        put_into(page, "probes: written by omnistream probe", table)


def put_into(page: Path, mark: str, text: str) -> None:
    """Replaces what stands in a document between `<!-- MARK -->` and the next `<!-- end -->`.

    Raises:
        ValueError: the document has no such marks.
    """
    whole = page.read_text()
    before, begin, rest = whole.partition(f"<!-- {mark} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not begin or not end:
        raise ValueError(
            f"{page} lacks the lines <!-- {mark} --> and <!-- end --> to write between"
        )
    page.write_text(f"{before}{begin}{text}{end}{after}")


def run(
    source: str | Path,
    settings: ProbeSettings,
    out: Path,
    command: str,
    page: Path | None = None,
    report: Callable[[str], None] = print,
) -> list[ProbeScores]:
    """Probes a model beside its own trunk and itself without the cache, and writes the table."""
    scores = probe(extractors(source), settings, report)
    clips = list(probe_clips(settings.clips, settings.count, FRAMES))
    test = [clip for clip in clips if clip.tested]

    def most(names: list[str]) -> str:
        shares = {name: names.count(name) / len(names) for name in names}
        return f"{100 * max(shares.values()):.1f}"

    note = (
        f"{len(clips)} clips, {len(test)} of them tested. Always the most frequent answer: room "
        f"{most([c.annotation.room.kind for c in test])}, motion {most([c.motion for c in test])}."
    )
    write(scores, out, command, note, page)
    report(f"\n{as_markdown(scores)}\n\n{note}")
    return scores
