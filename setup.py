"""The base requirements. A source install leaves the OpenCV, numpy and ONNX Runtime that an environment has alone.

Several distributions provide the same module: a hard requirement of one is laid over another that is there. So a GPU
would lose onnxruntime-gpu, and a robot's cv_bridge its OpenCV and numpy. Everything else is in pyproject.toml.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from setuptools import setup

SURVEY = """
import importlib.metadata as metadata, importlib.util as util, json
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
modules = {name: util.find_spec(name) is not None for name in ("cv2", "onnxruntime")}
print(json.dumps({"numpy": version("numpy"), **modules}))
"""


def requirements() -> list[str]:
    """Of the environment that asked for the build: its interpreter is run without the paths of the build itself."""
    paths = {"PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONSAFEPATH"}
    clean = {key: value for key, value in os.environ.items() if key not in paths}
    try:
        survey = subprocess.run([sys.executable, "-c", SURVEY], env=clean, cwd="/", capture_output=True, check=True)
        there = json.loads(survey.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        there = {}
    found = ["numpy>=1.21", "PyYAML>=5.4", "simplejpeg>=1.8"]
    if not there.get("onnxruntime"):
        found.append("onnxruntime>=1.20")
    if not there.get("cv2"):
        old = (there.get("numpy") or "2").startswith("1.")  # the wheels from 4.12 on would replace it by numpy 2
        found.append("opencv-python-headless>=4.5.4" + (",<4.12" if old else ""))
    return found


setup(install_requires=requirements())
