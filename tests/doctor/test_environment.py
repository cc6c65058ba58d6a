"""The doctor on packages and machines: what does not fit is named with the command that mends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from perception.doctor import environment
from perception.doctor.environment import InstalledPackage, MachineResources

GIB = 1 << 30
GOOD = (
    InstalledPackage("numpy", "2.4.6", (), ("numpy",)),
    InstalledPackage("opencv-python-headless", "5.0.0.93", ("numpy>=2",), ("cv2",)),
    InstalledPackage("pydantic", "2.14.3", (), ("pydantic",)),
    InstalledPackage("torch", "2.12.1", (), ("torch",)),
    InstalledPackage("torchvision", "0.27.1", ("torch (==2.12.1)", "scipy ; extra == 'scipy'"), ("torchvision",)),
    InstalledPackage("onnxruntime", "1.31.1", (), ("onnxruntime",)),
    InstalledPackage("albumentations", "2.0.8", (), ("albumentations",)),
)
ROOMY = MachineResources(16, 64 * GIB, 8 * GIB, 500 * GIB, "/home")


def kinds(packages=GOOD, here=ROOMY, workers=2, broken=None) -> dict[str, str]:
    found = environment.check_environment(packages, here, workers, broken or {})
    assert all(f.where == "environment" and f.message and (f.fix or f.severity == "note") for f in found)
    return {finding.code: finding.severity for finding in found}


def with_packages(*packages: InstalledPackage, without: str = "") -> tuple[InstalledPackage, ...]:
    names = {package.name for package in packages} | {without}
    return (*(package for package in GOOD if package.name not in names), *packages)


def test_a_good_environment_has_no_findings():
    assert kinds() == {}


def test_two_packages_that_provide_cv2():
    found = environment.check_environment(
        with_packages(InstalledPackage("opencv-python", "5.0.0.93", (), ("cv2",))), ROOMY, 0, {}
    )
    assert [(f.code, f.severity) for f in found] == [("conflicting_packages", "error")]
    assert "opencv-python, opencv-python-headless" in found[0].message
    assert "pip uninstall -y opencv-python opencv-python-headless" in found[0].fix


@pytest.mark.parametrize(
    ("packages", "kind", "severity"),
    [
        (with_packages(InstalledPackage("torch", "2.13.0", (), ("torch",))), "incompatible_torch", "error"),
        (with_packages(InstalledPackage("onnxruntime-gpu", "1.31.1", (), ("onnxruntime",))), "conflicting_packages",
         "error"),
        (with_packages(InstalledPackage("albumentationsx", "2.1", (), ("albumentations",))), "agpl_package", "warning"),
        (with_packages(InstalledPackage("opencv-python", "5.0", (), ("cv2",)), without="opencv-python-headless"),
         "other_opencv", "warning"),
        (with_packages(without="numpy"), "missing_package", "error"),
        (with_packages(InstalledPackage("dense-perception", "0.1.0", ("torch>=2.10 ; extra "
                                                                      "== 'train'",), ()), without="torch"),
         "missing_package", "error"),
        (with_packages(InstalledPackage("dense-perception", "0.1.0", ("numpy>=3",), ())), "incompatible_package",
         "error"),
        (with_packages(InstalledPackage("dense-perception", "0.1.0", ("onnxruntime>=1",), ()),
                       InstalledPackage("onnxruntime-gpu", "1.31.1", (), ("onnxruntime",)), without="onnxruntime"),
                       None, None),
        (with_packages(InstalledPackage("dense-perception", "0.1.0", ("torch>=99 ; extra == 'test'", "?!"), ())),
         None, None),
        ((*GOOD, InstalledPackage("numpy", "1.26.4", (), ("numpy",))), "duplicate_package", "error"),
        ((*GOOD, InstalledPackage("numpy", "1.26.4", (), ("numpy",), "/usr/lib")), None, None),
    ],
)  # fmt: skip
def test_packages_that_do_not_fit(packages, kind, severity):
    found = kinds(packages)
    assert found.get(kind) == severity if kind else found == {}


@pytest.mark.parametrize(
    ("broken", "kind", "severity"),
    [
        ({"torchvision": "RuntimeError: operator torchvision::nms does not exist"}, "broken_package", "error"),
        ({"cv2": "ImportError: libGL.so.1: cannot open shared object file"}, "broken_package", "error"),
        ({"torch": "the process at work on it died (SIGSEGV)"}, "broken_package", "error"),
        ({"torch": "no GPU: torch 2.12.1+cpu sees none of this machine's GPUs."}, "no_gpu", "warning"),
        ({"torchvision": "RuntimeError: nms", "timm": "RuntimeError: nms"}, "broken_package", "error"),
        ({"timm": "ModuleNotFoundError: No module named 'timm'", "cv2": ""}, None, None),
    ],
)
def test_packages_that_cannot_be_imported(broken, kind, severity):
    found = kinds(broken=broken)
    assert found.get(kind) == severity if kind else found == {}


@pytest.mark.parametrize(
    ("here", "workers", "kind"),
    [
        (MachineResources(16, GIB, 8 * GIB, 500 * GIB, "/"), 2, "low_memory"),
        (MachineResources(16, 64 * GIB, GIB // 16, 500 * GIB, "/"), 2, "low_shared_memory"),
        (MachineResources(16, 64 * GIB, GIB // 16, 500 * GIB, "/"), 0, None),
        (MachineResources(16, 64 * GIB, None, GIB, "/"), 2, "low_disk"),
        (MachineResources(1, None, None, None, "/"), 8, "many_workers"),
    ],
)
def test_machines(here, workers, kind):
    assert set(kinds(here=here, workers=workers)) == ({kind} if kind else set())


def test_this_environment(tmp_path):
    packages, here = environment.list_packages(), environment.probe_machine(tmp_path / "not" / "there")
    assert {"numpy", "opencv-python-headless"} <= {package.name for package in packages}
    assert here.num_cpus >= 1
    assert here.folder == str(tmp_path)
    assert not {"conflicting_packages", "incompatible_torch", "duplicate_package"} & set(kinds(packages, here))
    facts = environment.summarize_environment(packages, here)
    assert facts["cv2 comes from"] == "opencv-python-headless"
    assert "numpy" in facts["packages"]


def test_importing_says_what_is_wrong(tmp_path, monkeypatch):
    (tmp_path / "broken_one.py").write_text("raise RuntimeError('two\\nlines')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert environment.try_import(None, "json") == ""
    assert environment.try_import(None, "cv2") == ""
    assert environment.try_import(None, "broken_one") == "RuntimeError: two lines"
    assert "No module named" in environment.try_import(None, "there_is_none")


def test_a_damaged_distribution_is_passed_over(tmp_path, monkeypatch):
    for name, text in (
        ("a-1.0.dist-info", ""),
        ("b-2.dist-info", "Metadata-Version: 2.1\nName: b\n"),
        ("c.dist-info", None),
    ):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "METADATA").write_text(text)
    (tmp_path / "d-1.0.dist-info").write_bytes(b"\xff")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "numpy" in {package.name for package in environment.list_packages()}


def test_limits_of_a_container_count(monkeypatch):
    texts = {
        "/sys/fs/cgroup/cpu.max": "50000 100000\n",
        "/sys/fs/cgroup/memory.max": f"{4 * GIB}\n",
        "/sys/fs/cgroup/memory.current": f"{GIB}\n",
        "/proc/meminfo": "MemTotal: 99999999 kB\nMemAvailable: 88888888 kB\n",
    }
    monkeypatch.setattr(environment, "_read_text", lambda path: texts.get(path, ""))
    assert environment.count_cpus() == 1
    assert environment.measure_free_memory() == 3 * GIB
    texts.clear()
    assert environment.measure_free_memory() is None
    assert Path("/").is_dir()
