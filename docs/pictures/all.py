# SPDX-License-Identifier: Apache-2.0
"""Make the pictures of docs/images anew that show what the models do: after every new model.

    python docs/pictures/all.py [demo] [messages] [view] [closed_loop]

Without a name all of them, which takes some minutes. Needs the environment of scripts/env.sh; view
needs viser and Chromium as well, closed_loop the simulation (`pip install '.[simulation]'`). A
picture that cannot be made is told, and the others are made.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
IMAGES = HERE.parent / "images"


def commands(folder: str) -> dict[str, list[str]]:
    """What makes each picture, in words for this Python."""
    return {
        "demo": ["-m", "omnistream_ros.cli", "demo", "--out", folder],
        "messages": [str(HERE / "from_messages.py"), "--out", str(IMAGES / "messages.png")],
        "view": [str(HERE / "browser_page.py"), str(IMAGES / "view.png")],
        "closed_loop": [str(HERE / "closed_loop.py"), str(IMAGES / "closed_loop.gif")],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        known = commands(folder)
        if unknown := set(names) - set(known):
            parser.error(f"no picture {', '.join(sorted(unknown))}: {', '.join(known)}")
        for name in names or known:
            print(f"--- {name}", flush=True)
            if subprocess.run([sys.executable, *known[name]], check=False).returncode:
                failed.append(name)
            elif name == "demo":
                # A palette is enough to look at, and a third of the bytes. It must cover rare
                # colours and be dithered, or small things turn into those of large ones.
                picture = Image.open(Path(folder, "demo.png")).convert("RGB")
                palette = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE)
                picture.quantize(palette=palette).save(IMAGES / "demo.png", optimize=True)
    if failed:
        print(f"not made: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
