"""Hands CMakeLists.txt to CMake and Ninja; metadata is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    def run(self) -> None:
        package = Path(self.get_ext_fullpath("capmoe_kernels._cpu")).resolve().parent
        # A build folder per place the modules go: a wheel never rebuilds an editable install.
        build = ROOT / "build" / ("inplace" if package == ROOT / "capmoe_kernels" else "wheel")
        configure = ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}", f"-DCAPMOE_OUTPUT_DIR={package}"]
        # The cmake and ninja that pip put beside this Python, which need not be activated.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path}
        subprocess.run(configure, check=True, env=environment)
        subprocess.run(["cmake", "--build", build], check=True, env=environment)


setup(
    ext_modules=[Extension("capmoe_kernels._cpu", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
