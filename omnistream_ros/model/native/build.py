# SPDX-License-Identifier: Apache-2.0
"""Compile the C files beside: `python build.py [FOLDER]`, by default into the folder it stands in.

Run at installation, by CMake and by pip; never when a program starts. It needs a C compiler for x86
that knows AMX (GCC 11, Clang 12 or later). Without one nothing is built, the reason is printed, and
the model uses torch's own attention. It imports nothing but the standard library.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent
LIBRARY = "attention.so"
# OpenMP is compiled for but not linked: at run time its functions are those of torch's own copy.
# -march is not given: which functions may run is decided at run time, by what processor.c says.
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fopenmp", "-fno-math-errno")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vbmi", "-mavx512bf16")
#: Object, its source and the instructions that it may use.
OBJECTS = (
    ("processor", "processor.c", ()),
    ("generic_avx2", "generic.c", ("-mavx2", "-mfma")),
    ("generic_avx512", "generic.c", ("-mavx512f",)),
    ("attention", "attention.c", (*AVX512, "-mamx-tile", "-mamx-bf16")),
)


class BuildError(Exception):
    """The kernel cannot be built here; the message says why."""


def build(folder: Path) -> Path:
    """Compile into `folder` and return the library; BuildError if that cannot be done."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        raise BuildError(f"there is no kernel for {platform.machine()} processors")
    compiler = shlex.split(os.environ.get("CC", "")) or [
        next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), "")
    ]
    if not compiler[0]:
        raise BuildError("no C compiler was found (Debian, Ubuntu: sudo apt install gcc)")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        # Compiled and linked apart, so that the linker is not told of OpenMP.
        objects = [f"{work}/{name}.o" for name, _, _ in OBJECTS]
        steps = [
            [*compiler, *FLAGS, *may_use, "-c", str(SOURCES / source), "-o", f"{work}/{name}.o"]
            for name, source, may_use in OBJECTS
        ]
        steps.append([*compiler, "-shared", *objects, "-o", f"{work}/{LIBRARY}", "-lm"])
        for step in steps:
            try:
                done = subprocess.run(step, capture_output=True, text=True, check=False)
            except OSError as error:
                raise BuildError(f"{step[0]}: {error}") from error
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no message"])[0]
                raise BuildError(f"{step[0]} failed: {reason}")
        # Whoever has the old library loaded keeps it; whoever looks meets the old or the new one.
        os.replace(f"{work}/{LIBRARY}", folder / LIBRARY)
    return folder / LIBRARY


def main() -> int:
    """Always succeeds: without the kernel everything works, more slowly."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SOURCES
    try:
        print(f"attention kernel: built {build(folder)}")
    except BuildError as error:
        print(f"attention kernel: not built, torch's own attention will be used: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
