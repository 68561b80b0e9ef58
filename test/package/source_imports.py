# SPDX-License-Identifier: Apache-2.0
"""What the files of this package import, read from their syntax trees without running them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "omnistream_ros"
# Functions that import the module whose name they are given.
BY_NAME = {"import_module", "importorskip", "_installed"}


def imports(file: Path) -> Iterator[str]:
    """Dotted names of the modules a file imports anywhere; relative imports as absolute names.

    `from omnistream_ros.model import config` yields both `omnistream_ros.model` and
    `omnistream_ros.model.config`, since syntax does not tell a module from a name inside one.
    """
    package = file.parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) in BY_NAME
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def packages_used(*folders: Path) -> dict[str, list[Path]]:
    """Top-level packages from outside of the standard library and this project -> their users."""
    used: dict[str, list[Path]] = {}
    for folder in folders:
        files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder]
        beside = {file.stem for file in (ROOT / "test").rglob("*.py")}
        for file in files:
            for name in {name.partition(".")[0] for name in imports(file)}:
                if name not in sys.stdlib_module_names and name not in {PACKAGE.name, *beside}:
                    used.setdefault(name, []).append(file.relative_to(ROOT))
    return used
