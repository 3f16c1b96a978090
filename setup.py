"""Build script: metadata lives in pyproject.toml, what is compiled and how in csrc/build."""

import sys
from pathlib import Path

from setuptools import setup

sys.path.insert(0, str(Path(__file__).resolve().parent))

from csrc.build.command import commands, extensions
from csrc.build.install import Plan

plan = Plan()
setup(ext_modules=extensions(plan), cmdclass=commands(plan))
