# SPDX-License-Identifier: Apache-2.0
"""The contact sheet of rendered rooms: forty training clips, colour over depth (near is bright).

    python docs/pictures/contact_sheet.py [--seed FIRST] [--out FILE]

Clips from seed FIRST on, without installed pictures, so that it may be published; the names of
those who made the furniture go beside it. Without `--out` it replaces docs/images/scenes.jpg. Needs
the environment of scripts/env.sh, or it shows the rooms of an installed package.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from omnistream_ros.training.assets import Asset, FurnitureLibrary, attribution
from omnistream_ros.training.clips import fill
from omnistream_ros.training.scenes import SceneMaker

SHOWN = 40


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=10_000_301, help="of the first clip")
    images = Path(__file__).resolve().parents[1] / "images"
    parser.add_argument("--out", type=Path, default=images / "scenes.jpg")
    args = parser.parse_args()
    seeds = range(args.seed, args.seed + SHOWN)
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), seeds.start, seeds.stop, pictures=False)
        shutil.copyfile(Path(folder, "contact_sheet.jpg"), args.out)
    maker = SceneMaker(FurnitureLibrary(), pictures=False)
    used: set[Asset] = {asset for seed in seeds for asset in maker.used(maker.make(seed))}
    args.out.with_suffix(".ATTRIBUTION.txt").write_text(attribution(used))


if __name__ == "__main__":
    main()
