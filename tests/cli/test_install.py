"""What an install asks for, beside what an environment already has; and what the base install says of the rest."""

from __future__ import annotations

import runpy
import subprocess
import sys
import types
import venv
from contextlib import nullcontext
from pathlib import Path

import pytest

from perception.cli import describe_missing
from perception.runtime.onnxruntime_check import check_single_onnxruntime
from perception.types import PerceptionError

ROOT = Path(__file__).parents[2]


def _requirements(monkeypatch, python: str) -> list[str]:
    """The requirements of a source install into the environment of the interpreter ``python``."""
    found: dict = {}
    monkeypatch.setitem(sys.modules, "setuptools", types.SimpleNamespace(setup=found.update))
    monkeypatch.setattr(sys, "executable", python)
    runpy.run_path(str(ROOT / "setup.py"))
    return found["install_requires"]


@pytest.fixture
def environment(tmp_path):
    """Makes an environment that seems to have distributions: name, version, module."""
    venv.create(tmp_path / "venv", symlinks=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")

    def make(*distributions: tuple[str, str, str]) -> str:
        for name, version, module in distributions:
            (packages / f"{module}.py").write_text("", "utf-8")
            folder = packages / f"{name.replace('-', '_')}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
        return str(tmp_path / "venv" / "bin" / "python")

    return make


NUMPY, YAML, JPEG = "numpy>=1.21", "PyYAML>=5.4", "simplejpeg>=1.8"
ENGINE, OPENCV = "onnxruntime>=1.20", "opencv-python-headless>=4.5.4"


def test_a_plain_install_brings_all_that_predict_needs(monkeypatch, environment):
    assert _requirements(monkeypatch, environment()) == [NUMPY, YAML, JPEG, ENGINE, OPENCV]


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"])
def test_an_engine_that_is_there_is_left_alone(monkeypatch, environment, name):
    python = environment((name, "1.23.2", "onnxruntime"))
    assert _requirements(monkeypatch, python) == [NUMPY, YAML, JPEG, OPENCV]


def test_a_robots_numpy_and_opencv_are_left_alone(monkeypatch, environment):
    """cv_bridge is compiled against both. Debian's OpenCV has no metadata: what counts is that it can be imported."""
    python = environment(("numpy", "1.24.2", "numpy"), ("none-of-it", "1.0", "cv2"))
    assert _requirements(monkeypatch, python) == [NUMPY, YAML, JPEG, ENGINE]


def test_numpy_1_stays_where_there_is_no_opencv(monkeypatch, environment):
    """The wheels of OpenCV from 4.12 on need numpy 2."""
    python = environment(("numpy", "1.24.2", "numpy"))
    assert _requirements(monkeypatch, python) == [NUMPY, YAML, JPEG, ENGINE, f"{OPENCV},<4.12"]


def test_an_interpreter_that_cannot_be_asked_gets_everything(monkeypatch, tmp_path):
    assert _requirements(monkeypatch, str(tmp_path / "absent")) == [NUMPY, YAML, JPEG, ENGINE, OPENCV]


BASE = ("numpy", "cv2", "yaml", "onnxruntime", "simplejpeg")
COMMANDS = {
    "demo --out d": "[train]",
    "train recipe.yaml": "[train]",
    "evaluate run": "[train]",
    "predict run a.jpg": "[train]",
    "predict absent.onnx a.jpg": "absent.onnx",
    "ood fit absent.onnx a.jpg": "absent.onnx",
    "label absent.onnx a --out o": "absent.onnx",
    "export run": "[train]",
    "compare recipe.yaml --out c": "[train]",
    "group recipe.yaml": "[train]",
    "tune recipe.yaml --out t": "[train]",
    "grow run recipe.yaml tasks.depth.weight=1": "[train]",
    "doctor recipe.yaml": "[train]",
    "bench absent.onnx": "[train]",
    "bench data recipe.yaml": "[train]",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_base_install_says_what_a_command_lacks(tmp_path, command):
    code = (
        "import importlib.abc, sys\n"
        "third_party = {p.name.partition('-')[0].partition('.')[0] for d in sys.path if 'site-packages' in d\n"
        "               for p in __import__('pathlib').Path(d).iterdir()}\n"
        f"third_party -= {{*{BASE!r}, 'perception', '__editable___dense_perception_0_1_0_finder'}}\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in third_party:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from perception import cli\n"
        "raise SystemExit(cli.main(sys.argv[1:]))\n"
    )
    (tmp_path / "recipe.yaml").write_text("name: x\n", "utf-8")
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert COMMANDS[command] in done.stderr
    assert done.stderr.startswith(f"perception {command.split()[0]}: ")
    assert len(done.stderr.splitlines()) == 1


def test_each_missing_package_has_its_own_mend():
    assert "onnxruntime-gpu" in describe_missing("onnxruntime.capi")
    assert "python3-opencv" in describe_missing("cv2")
    assert "[robots]" in describe_missing("rosbags.highlevel")
    assert "[train]" in describe_missing("torch")


@pytest.mark.parametrize(
    ("folders", "conflict"),
    [
        ({"onnxruntime": "a"}, False),
        ({"onnxruntime": "a", "onnxruntime-gpu": "a"}, True),
        ({"onnxruntime": "system", "onnxruntime-gpu": "environment"}, False),
    ],
)
def test_two_engines_in_one_folder_are_an_error_with_its_mend(tmp_path, monkeypatch, folders, conflict):
    for name, folder in folders.items():
        path = tmp_path / folder / f"{name.replace('-', '_')}-1.23.0.dist-info"
        path.mkdir(parents=True)
        (path / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.23.0\n", "utf-8")
    monkeypatch.setattr(sys, "path", sorted({str(tmp_path / folder) for folder in folders.values()}))
    check_single_onnxruntime.cache_clear()
    try:
        with (
            pytest.raises(PerceptionError, match="pip uninstall -y onnxruntime onnxruntime-gpu && pip install")
            if (conflict)
            else nullcontext()
        ):
            check_single_onnxruntime()
    finally:
        check_single_onnxruntime.cache_clear()
