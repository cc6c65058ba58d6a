"""Checks of packages and machine before training: compatible versions, one cv2, memory, disk, CPUs."""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import os
import platform
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from perception.doctor.findings import Finding, Severity, sanitize_text

DISTRIBUTION_NAME = "dense-perception"
IMPORTED_MODULES = ("numpy", "cv2", "PIL", "pydantic", "albumentations", "torch", "torchvision", "timm", "onnxruntime")
"""Modules to import as a test."""
REPORTED_PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "torch",
    "torchvision",
    "timm",
    "onnxruntime",
    "albumentations",
    "pydantic",
)
_CHECKED_PACKAGES = frozenset((*REPORTED_PACKAGES, "onnx", "albucore"))
_GIB, _NO_GPU = 1 << 30, "no GPU:"

CONFLICTING_PACKAGES = {
    "cv2": ("opencv-python-headless", "They overwrite each other's files, and removing one breaks the other."),
    "onnxruntime": ("onnxruntime", "They overwrite each other's files; which one is imported is undefined."),
    "albumentations": ("albumentations==2.0.8", "They overwrite each other's files."),
}
"""Module -> (distribution to keep, why two of them conflict)."""


@dataclass(frozen=True, slots=True)
class InstalledPackage:
    """An installed distribution.

    Attributes:
        name: name as installed.
        version: version as installed.
        requirements: requirements as written in its metadata.
        modules: modules that it provides.
        folder: folder that it is installed in.
    """

    name: str
    version: str
    requirements: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    folder: str = ""


@dataclass(frozen=True, slots=True)
class MachineResources:
    """Resources of this machine. Sizes in bytes; None = unknown.

    Attributes:
        num_cpus: CPUs available to this process.
        free_memory: free memory.
        free_shared_memory: free space in /dev/shm.
        free_disk: free space of ``folder``.
        folder: the existing folder that holds, or will hold, runs/.
    """

    num_cpus: int
    free_memory: int | None
    free_shared_memory: int | None
    free_disk: int | None
    folder: str


def list_packages() -> list[InstalledPackage]:
    """List the distributions of this environment in path order. Damaged ones are skipped."""
    providers: dict[str, list[str]] = {}
    try:
        for module, names in metadata.packages_distributions().items():
            for name in names:
                providers.setdefault(_normalize_name(name), []).append(module)
    except (OSError, ValueError, TypeError, AttributeError, UnicodeDecodeError):  # damaged distribution
        providers = {}
    packages = []
    for distribution in metadata.distributions():
        try:
            name, version = distribution.metadata["Name"], distribution.version
            requires, folder = tuple(distribution.requires or ()), str(distribution.locate_file(""))
        except (KeyError, OSError, ValueError, TypeError, AttributeError):
            continue
        if name and version:
            packages.append(
                InstalledPackage(name, version, requires, tuple(providers.get(_normalize_name(name), ())), folder)
            )
    return packages


def probe_machine(folder: Path) -> MachineResources:
    """Measure the resources of this machine. ``folder`` of the runs does not need to exist yet."""
    candidates = (folder.absolute(), *folder.absolute().parents)
    existing = next((parent for parent in candidates if parent.is_dir()), Path("/"))
    return MachineResources(
        count_cpus(),
        measure_free_memory(),
        _measure_free_disk(Path("/dev/shm")),
        _measure_free_disk(existing),
        str(existing),
    )


def check_environment(
    packages: Sequence[InstalledPackage], machine: MachineResources, workers: int, import_errors: Mapping[str, str]
) -> list[Finding]:
    """Check an environment.

    Args:
        packages: installed distributions.
        machine: resources of the machine.
        workers: ``data.workers`` of the recipe.
        import_errors: module -> why it cannot be imported; "" = it can.

    Returns:
        Findings about the environment.
    """
    by_name: dict[str, InstalledPackage] = {}
    for package in packages:
        by_name.setdefault(_normalize_name(package.name), package)
    found = [
        *_check_python(by_name),
        *_check_conflicting_packages(packages),
        *_check_licenses(by_name),
        *_check_requirements(by_name),
        *_check_duplicate_versions(packages),
    ]
    return [*found, *_check_imports(import_errors), *_check_machine(machine, workers)]


def is_usable(import_errors: Mapping[str, str]) -> bool:
    """Return whether all modules could be imported. A torch that finds no GPU counts as usable."""
    return not any(reason and not reason.startswith(_NO_GPU) for reason in import_errors.values())


def _check_imports(import_errors: Mapping[str, str]) -> Iterator[Finding]:
    modules: dict[str, list[str]] = {}
    for module, reason in import_errors.items():
        if reason and "No module named" not in reason:  # `_check_requirements` reports missing packages
            modules.setdefault(reason, []).append(module)
    for reason, names in modules.items():
        if reason.startswith(_NO_GPU):
            mend = "Install a torch build for its driver, or update the driver. Otherwise training runs on the CPU."
            yield _make_finding("warning", "no_gpu", sanitize_text(reason.removeprefix(_NO_GPU).strip()), mend)
        else:
            mend = "Reinstall it: pip install --force-reinstall 'dense-perception[train]'"
            yield _make_finding(
                "error", "broken_package", f"{', '.join(names)} cannot be imported: {sanitize_text(reason)}", mend
            )


def summarize_environment(packages: Sequence[InstalledPackage], machine: MachineResources) -> dict[str, str]:
    """Summarize the environment: label -> text."""
    versions = {_normalize_name(p.name): p.version for p in reversed(packages)}
    shown = [f"{name} {versions[name]}" for name in REPORTED_PACKAGES if name in versions]
    providers = sorted({p.name for p in packages if "cv2" in p.modules})
    sizes = [
        f"{text} {size / _GIB:.1f} GiB"
        for text, size in (
            ("memory", machine.free_memory),
            ("/dev/shm", machine.free_shared_memory),
            (machine.folder, machine.free_disk),
        )
        if size is not None
    ]
    return {
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "packages": ", ".join(shown),
        "cv2 comes from": ", ".join(providers) or "unknown",
        "processors": str(machine.num_cpus),
        "free": ", ".join(sizes),
    }


def try_import(state: None, module: str) -> str:
    """Import a module and access the attributes that conflicting packages break most often. Run it in a `WorkerPool`.

    Args:
        state: unused context of the worker.
        module: module to import.

    Returns:
        The error message; "" if the import works.
    """
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module(module)
            for name in {"cv2": ("imdecode", "IMREAD_COLOR"), "torchvision": ("ops",)}.get(module, ()):
                getattr(found, name)
            if module == "torch" and Path("/dev/nvidia0").exists() and not found.cuda.is_available():
                return f"{_NO_GPU} torch {found.__version__} finds none of this machine's GPUs."
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


def count_cpus() -> int:
    """Count the CPUs available to this process, within the limit of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit, _, period = _read_text("/sys/fs/cgroup/cpu.max").partition(" ")
    if limit.isdigit() and period.strip().isdigit():
        count = min(count, max(1, round(int(limit) / int(period))))
    return count


def measure_free_memory() -> int | None:
    """Measure the free memory in bytes, within the limit of the container; None = unknown."""
    match = re.search(r"MemAvailable:\s+(\d+) kB", _read_text("/proc/meminfo"))
    free = int(match[1]) * 1024 if match else None
    limit, used = (_read_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        inside = max(0, int(limit) - int(used))
        free = inside if free is None else min(free, inside)
    return free


def _read_text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _measure_free_disk(path: Path) -> int | None:
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _normalize_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _make_finding(severity: Severity, code: str, message: str, fix: str = "") -> Finding:
    return Finding(severity, code, "environment", message, fix)


def _check_python(packages: Mapping[str, InstalledPackage]) -> Iterator[Finding]:
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        what = f"Python is {platform.python_version()}. perception supports 3.11 to 3.13."
        yield _make_finding("error", "python_version", what, "Create an environment with a supported version.")
    for name in ("numpy", "pydantic"):
        if name not in packages:
            yield _make_finding("error", "missing_package", f"{name} is not installed.", f"pip install {name}")


def _check_conflicting_packages(packages: Sequence[InstalledPackage]) -> Iterator[Finding]:
    for module, (kept, why) in CONFLICTING_PACKAGES.items():
        names = sorted({_normalize_name(p.name) for p in packages if module in p.modules})
        if len(names) > 1:
            what = f"{len(names)} packages provide {module}: {', '.join(names)}. {why}"
            mend = f"pip uninstall -y {' '.join(names)} && pip install --force-reinstall --no-deps {kept}"
            yield _make_finding("error", "conflicting_packages", what, mend)
        elif module == "cv2" and names and names != ["opencv-python-headless"]:
            what = f"cv2 comes from {names[0]}; perception and albumentations depend on opencv-python-headless, so the "
            what += "next pip install adds it as a second cv2."
            mend = f"pip uninstall -y {names[0]} && pip install --force-reinstall opencv-python-headless"
            yield _make_finding("warning", "other_opencv", what, mend)


def _check_licenses(packages: Mapping[str, InstalledPackage]) -> Iterator[Finding]:
    if "albumentationsx" in packages:
        what = "albumentationsx is installed. Its license is AGPL or commercial, and it reports usage. perception uses "
        what += "albumentations (MIT)."
        mend = "pip uninstall -y albumentationsx && pip install --force-reinstall albumentations==2.0.8"
        yield _make_finding("warning", "agpl_package", what, mend)


def _check_requirements(packages: Mapping[str, InstalledPackage]) -> Iterator[Finding]:
    """Unmet requirements of perception and of its main dependencies."""
    try:
        from packaging.requirements import InvalidRequirement, Requirement
    except ImportError:
        return
    for owner in (DISTRIBUTION_NAME, *sorted(_CHECKED_PACKAGES & packages.keys())):
        for text in packages[owner].requirements if owner in packages else ():
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            extra = "train" if owner == DISTRIBUTION_NAME else ""
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            there = packages.get(_normalize_name(requirement.name))
            if there is None:
                if owner == DISTRIBUTION_NAME and not _has_substitute(requirement.name, packages):
                    what = f"{requirement.name} is not installed; training needs it."
                    yield _make_finding("error", "missing_package", what, "pip install 'dense-perception[train]'")
            elif not requirement.specifier.contains(there.version, prereleases=True):
                what = f"{owner} requires {requirement.name}{requirement.specifier}, but {there.version} is installed."
                kind = "incompatible_torch" if requirement.name == "torch" else "incompatible_package"
                yield _make_finding("error", kind, what, f"pip install '{requirement.name}{requirement.specifier}'")


def _has_substitute(name: str, packages: Mapping[str, InstalledPackage]) -> bool:
    """Whether another package provides the same module: onnxruntime-gpu for onnxruntime."""
    modules = [
        module for module, (kept, _) in CONFLICTING_PACKAGES.items() if kept.partition("=")[0] == _normalize_name(name)
    ]
    return any(module in package.modules for module in modules for package in packages.values())


def _check_duplicate_versions(packages: Sequence[InstalledPackage]) -> Iterator[Finding]:
    """Packages with two versions in one folder, which an interrupted installation leaves."""
    versions: dict[tuple[str, str], set[str]] = {}
    for package in packages:
        versions.setdefault((_normalize_name(package.name), package.folder), set()).add(package.version)
    for (name, folder), found in versions.items():
        if len(found) > 1 and name in _CHECKED_PACKAGES:
            what = f"{folder} contains several versions of {name}: {', '.join(sorted(found))}."
            mend = f"Repeat pip uninstall -y {name} until none is left, then install it again."
            yield _make_finding("error", "duplicate_package", what, mend)


def _check_machine(machine: MachineResources, workers: int) -> Iterator[Finding]:
    if workers > machine.num_cpus:
        what = f"data.workers is {workers}, but this process can use only {machine.num_cpus} CPUs."
        yield _make_finding("note", "many_workers", what, f"data.workers={machine.num_cpus} is enough.")
    for size, least, kind, what, mend in (
        (machine.free_memory, 2 * _GIB, "low_memory", "of memory are free", "Close other programs, or "
                                                                               "use fewer workers."),
        (machine.free_disk, 2 * _GIB, "low_disk", f"are free under {machine.folder}, "
                                                     "where runs/ is written", "Free some space."),
        (
            machine.free_shared_memory if workers else None, _GIB // 4, "low_shared_memory",
            "are free in /dev/shm, which workers use to pass batches",
            "In a container, start it with --shm-size=2g. Otherwise set data.workers=0.",
        ),
    ):  # fmt: skip
        if size is not None and size < least:
            yield _make_finding("warning", kind, f"Only {size / _GIB:.2f} GiB {what}.", mend)
