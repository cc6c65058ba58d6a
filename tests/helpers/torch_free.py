"""Runs code in a process that cannot import torch."""

import subprocess
import sys
from typing import BinaryIO

BLOCKED = (
    "torch",
    "torchvision",
    "timm",
    "pydantic",
    "matplotlib",
    "onnx",
    "onnxscript",
    "PIL",
    "albumentations",
    "rich",
    "safetensors",
    "scipy",
    "trackers",
    "supervision",
    "requests",
    "av",
    "rerun",
    "mcap",
    "rosbags",
)


BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)
sys.meta_path.insert(0, Blocker())
"""


def without_torch(code: str, *arguments: str, stdin: BinaryIO | None = None) -> str:
    """Standard output of ``code`` in a Python that has only the base install."""
    command = [sys.executable, "-c", BLOCKER + code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout
