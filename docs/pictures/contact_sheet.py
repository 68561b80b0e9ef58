# SPDX-License-Identifier: Apache-2.0
"""The contact sheet of rendered rooms: forty training clips, colour over depth (near is bright).

    python docs/pictures/contact_sheet.py [--seed FIRST] [--out FILE]

The first view of each clip from seed FIRST on, without installed pictures, so that it may be
published; the names of those who made the furniture go beside it. Without `--out` it replaces
docs/images/scenes.jpg.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from omnistream_ros.training.assets import Asset, FurnitureLibrary, attribution
from omnistream_ros.training.clips import HEIGHT, WIDTH, SeedError, training_clip
from omnistream_ros.training.render import Renderer
from omnistream_ros.training.scenes import SceneMaker

COLUMNS, ROWS = 8, 5
_NEAREST = 0.4  # metres, brightest


def coloured(depth: np.ndarray) -> np.ndarray:
    """Depth (H, W) in metres as BGR."""
    nearness = np.clip(_NEAREST / depth, 0, 1) ** 0.7
    return cv2.applyColorMap((nearness * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=10_000_301, help="of the first clip")
    images = Path(__file__).resolve().parents[1] / "images"
    parser.add_argument("--out", type=Path, default=images / "scenes.jpg")
    args = parser.parse_args()
    maker, renderer = SceneMaker(FurnitureLibrary(), pictures=False), Renderer(WIDTH, HEIGHT)
    shown: list[np.ndarray] = []
    used: set[Asset] = set()
    seed = args.seed
    while len(shown) < COLUMNS * ROWS:
        try:
            clip = training_clip(seed, maker, renderer)
        except SeedError:
            continue
        finally:
            seed += 1
        shown.append(np.vstack((clip.rgb[0][..., ::-1], coloured(clip.depth[0]))))
        used.update(maker.used(clip.scene))
    renderer.close()
    rows = [np.hstack(shown[i * COLUMNS : (i + 1) * COLUMNS]) for i in range(ROWS)]
    cv2.imwrite(str(args.out), np.vstack(rows), [cv2.IMWRITE_JPEG_QUALITY, 85])
    args.out.with_suffix(".ATTRIBUTION.txt").write_text(attribution(used))
    print(f"{args.out}: seeds {args.seed} to {seed - 1}")


if __name__ == "__main__":
    main()
