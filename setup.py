# SPDX-License-Identifier: Apache-2.0
"""`pip install .`: the parts that need no ROS, and the `omnistream` command. See setup.cfg.

In a ROS 2 workspace CMakeLists.txt builds the package instead, with its messages and nodes.
"""

import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

NATIVE = Path("omnistream_ros", "model", "native")


class BuildWithKernel(build_py):
    """Also compiles the attention kernel, where this machine can."""

    def run(self) -> None:
        super().run()
        folder = NATIVE if self.editable_mode else Path(self.build_lib) / NATIVE
        subprocess.run([sys.executable, NATIVE / "build.py", folder], check=True)


class BinaryDistribution(Distribution):
    """A wheel of this package fits one kind of processor."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildWithKernel}, distclass=BinaryDistribution)
