"""The contract of every format in DATASETS. A new format inherits it by a tree in ``TREES`` (see `data_trees`)."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data_corruption import limit_resources
from data_trees import CLASSES, all_trees, check_annotation, open_tree, source_config, write_image

from perception.data import DATASETS, DataSource, open_source
from perception.types import Camera, DataError, DenseMap, ImageLabel, Instances, Sample

TREES = all_trees()
IMAGE_SIZE_IS_NOT_KNOWN = ("image_labels", "yolo", "yolo_masks")
"""Formats whose labels say nothing of the image's size, or are relative to it."""


@pytest.fixture(scope="module", params=TREES)
def tree(request, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """(data root, the reader's config); read only: `copied` to change it."""
    root = tmp_path_factory.mktemp("data").resolve()
    return root, TREES[request.param](root)


@pytest.fixture
def copied(tree, tmp_path) -> tuple[Path, dict[str, Any]]:
    """A tree of one's own."""
    shutil.copytree(tree[0], tmp_path / "data", symlinks=True)
    return (tmp_path / "data").resolve(), tree[1]


def parts(annotation: Any) -> dict[str, Any]:
    return {name: getattr(annotation, name) for name in type(annotation).__dataclass_fields__}


def digest(sample: Sample) -> str:
    """A check sum of all that a sample holds."""
    found = hashlib.sha256(np.ascontiguousarray(sample.image).tobytes() + repr(sample.camera).encode())
    for task, annotation in sorted(sample.annotations.items()):
        for name, array in parts(annotation).items():
            found.update(f"{task}.{name}: {None if array is None else (array.dtype, array.shape)}".encode())
            found.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def outcome(root: Path, config: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """(image -> check sum of its sample, what was reported: errors and problems)."""
    with limit_resources(10, 2 << 30):
        try:
            source = open_tree(root, config)
        except DataError as error:
            return {}, [str(error)]
        reports = [f"{kind}: {count}" for kind, count in sorted(source.problems.items())]
        reports.append(f"tasks: {source.tasks}")
        samples = {}
        for index in range(len(source)):
            try:
                samples[source.image_id(index)] = digest(source.load_sample(index))
            except DataError as error:
                reports.append(str(error))
        return samples, reports


def test_every_format_has_a_tree(tmp_path):
    formats = {tree(tmp_path / str(i))["format"] for i, tree in enumerate(TREES.values())}
    assert formats == set(DATASETS)


def test_samples_are_what_their_types_promise(tree):
    root, config = tree
    source = open_tree(root, config)
    reader = source.readers[0]
    assert reader.images
    assert len(set(reader.images)) == len(reader.images) == len(source)
    assert all(path.is_absolute() and path == path.resolve() and path.is_file() for path in reader.images)
    assert set(reader.tasks) <= set(CLASSES)
    labelled = set()
    for index in range(len(source)):
        sample = source.load_sample(index)
        assert sample.image.dtype == np.uint8
        assert sample.image.flags.c_contiguous
        assert sample.camera is None or all(np.isfinite(value) for value in parts(sample.camera).values())
        assert isinstance(sample.camera, Camera | None)
        assert sample.annotations
        for task, annotation in sample.annotations.items():
            check_annotation(annotation, sample.image.shape[:2], CLASSES[task])
        labelled |= set(sample.annotations)
    assert labelled == set(reader.tasks)
    assert all(isinstance(kind, str) and count > 0 for kind, count in reader.problems.items())


def test_the_size_may_be_unknown(tree):
    root, config = tree
    source = open_tree(root, config)
    for index in range(len(source)):
        sample = source.load_sample(index)
        without = source.read_annotations(index)
        assert digest(sample) == digest(Sample(sample.image, dict(without), sample.camera))


@pytest.mark.fault("D6")
@pytest.mark.parametrize("other", [(49, 64), (48, 63), (64, 48), (1, 1)])
def test_labels_of_an_image_of_another_size(tree, other):
    root, config = tree
    if config["format"] in IMAGE_SIZE_IS_NOT_KNOWN:
        pytest.skip("its labels say nothing of the image's size")
    source = open_tree(root, config)
    for index, picture in enumerate(source.records):
        with pytest.raises(DataError, match=f"{other[1]} x {other[0]}") as caught:
            source.read_annotations(index, other)
        assert picture.path.name in str(caught.value)


@pytest.mark.fault("L1")
def test_a_reader_travels_to_a_worker(tree):
    root, config = tree
    source = open_tree(root, config)
    again = pickle.loads(pickle.dumps(source))
    assert again.problems == source.problems
    assert [digest(again.load_sample(i)) for i in range(len(again))] == [
        digest(source.load_sample(i)) for i in range(len(source))
    ]


class Backwards:
    """A folder's entries in the other order than `os.scandir` gives them."""

    def __init__(self, entries: Any) -> None:
        self.entries = entries

    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(self.entries, key=lambda entry: entry.name, reverse=True))

    def __enter__(self) -> Backwards:
        return self

    def __exit__(self, *error: object) -> None:
        self.entries.close()


def test_the_order_does_not_depend_on_how_folders_are_listed(tree, monkeypatch):
    root, config = tree
    listed = {}
    scan, names = os.scandir, os.listdir
    for turn, ways in {
        "forwards": (scan, lambda path=".": sorted(names(path))),
        "backwards": (lambda path=".": Backwards(scan(path)), lambda path=".": sorted(names(path), reverse=True)),
    }.items():
        monkeypatch.setattr(os, "scandir", ways[0])
        monkeypatch.setattr(os, "listdir", ways[1])
        source = open_tree(root, config)
        listed[turn] = [source.readers[0].images, [digest(source.load_sample(i)) for i in range(len(source))]]
    assert listed["forwards"] == listed["backwards"]


@pytest.mark.fault("D17")
def test_only_the_tasks_of_the_recipe_are_labeled(tree):
    root, config = tree
    whole = open_tree(root, config)
    for task in whole.tasks:
        source = open_source(source_config(config), root, {task: CLASSES[task]})
        assert source is not None
        assert source.tasks == (task,)
        for index in range(len(source)):
            assert set(source.read_annotations(index)) == {task}
    none = open_source(source_config(config), root, {"other": ("a",)})
    assert none is None


def options(config: dict[str, Any], ending: str, tasks: tuple[str, ...]) -> list[str]:
    """The config's keys ``rename``, ``detection_rename`` ... that matter for the tasks."""
    fields = DATASETS[config["format"]].Config.__dataclass_fields__
    found = []
    for name in fields:
        prefix = name.removesuffix(ending).removesuffix("_")
        if not name.endswith(ending) or (prefix and f"{prefix}_task" not in fields):
            continue
        if task_of(config, name, ending) in tasks and CLASSES[task_of(config, name, ending)]:
            found.append(name)
    return found


def task_of(config: dict[str, Any], name: str, ending: str) -> str:
    """The task that an option is about."""
    fields = DATASETS[config["format"]].Config.__dataclass_fields__
    keys = name.removesuffix(ending) + "task", "segmentation_task", "detection_task"
    key = next(key for key in keys if key in fields)
    return config.get(key) or fields[key].default


@pytest.mark.fault("D11")
def test_options_that_name_no_class_are_refused_with_the_nearest(tree):
    root, config = tree
    tasks = open_tree(root, config).tasks
    for name in options(config, "rename", tasks):
        given = config.get(name) or {}
        known = next(iter(given), None)
        wrong = f"{known}x" if known else "qqqqq"
        target = next(iter(given.values()), "x")
        with pytest.raises(DataError, match=rf"(?s){wrong}.*(Did you mean {known!r}|Known: )"):
            open_tree(root, {**config, name: {**given, wrong: target}})
        if known:
            with pytest.raises(DataError, match=rf"(?s){target}x.*Did you mean {target!r}"):
                open_tree(root, {**config, name: {**given, known: f"{target}x"}})
    for ending in ("ignore", "background"):
        for name in options(config, ending, tasks):
            with pytest.raises(DataError, match=r"(?s)qqqqq.*Known: "):
                open_tree(root, {**config, name: ["qqqqq"]})


@pytest.mark.fault("D11")
def test_a_class_without_a_place_in_the_recipe_is_refused_with_the_nearest(tree):
    root, config = tree
    tasks = [task for task in open_tree(root, config).tasks if CLASSES[task]]
    for task in tasks:
        bare = {key: value for key, value in config.items() if not key.endswith(("rename", "ignore", "background"))}
        with pytest.raises(DataError, match=r"(?s)(not in the recipe|not a class).*(Did you mean|Known: )"):
            open_source(source_config(bare), root, {task: ("qqqqq", "zzzzz")})


def test_labels_only_marks_the_other_classes_as_unlabeled(tree):
    root, config = tree
    whole = open_tree(root, config)
    for name in options(config, "labels_only", whole.tasks):
        task = task_of(config, name, "labels_only")
        seen = {c for i in range(len(whole)) for c in labels_in(whole.read_annotations(i).get(task))}
        kept = CLASSES[task][min(seen)]
        source = open_tree(root, {**config, name: [kept]})
        index = CLASSES[task].index(kept)
        met = 0
        for i in range(len(source)):
            match source.load_sample(i).annotations.get(task):
                case Instances(boxes, labels, _, ignore, classes):
                    assert classes.tolist() == [c == index for c in range(len(CLASSES[task]))]
                    assert len(boxes) == 0 or (labels[~ignore] == index).all() if ignore is not None else True
                    met += 1
                case DenseMap(values, valid, _, space):
                    before = whole.load_sample(i).annotations[task]
                    others = tuple(k for k in range(len(CLASSES[task])) if k != index)
                    assert (valid == before.valid).all(), "what had a label has one still: what it is not"
                    sets = [(k,) for k in range(len(CLASSES[task]))] if space is None else space.class_sets
                    mine = np.array([each == (index,) for each in sets])[values[valid]]
                    assert {sets[k] for k in np.unique(values[valid])} <= {(index,), others}
                    assert (mine == (before.values[valid] == index)).all()
                    met += 1
                case ImageLabel(values):
                    assert not np.delete(values, index).any()
                    met += 1
        assert met
        with pytest.raises(DataError, match="qqqqq"):
            open_tree(root, {**config, name: ["qqqqq"]})


def test_a_coarse_name_is_a_set_of_classes_in_every_reader_of_label_maps(tree):
    root, config = tree
    whole = open_tree(root, config)
    for name in options(config, "coarse", whole.tasks):
        task = task_of(config, name, "coarse")
        class_map = next(reader.class_maps[task] for reader in whole.readers if task in reader.class_maps)
        there = {k for i in range(len(whole)) for k in labels_in(whole.read_annotations(i).get(task))}
        theirs = [own for own, k in class_map.indices.items() if k in there]
        if len(theirs) < 2:
            continue
        ending = name.removesuffix("coarse")
        given = config.get(f"{ending}rename") or {}
        plain = {**config, f"{ending}rename": {k: v for k, v in given.items() if k != theirs[0]}}
        both = [CLASSES[task][k] for k in sorted({class_map.indices[own] for own in theirs[:2]})]
        source = open_tree(root, {**plain, name: {theirs[0]: both}})
        met = 0
        for i in range(len(source)):
            label_map, before = source.read_annotations(i).get(task), whole.read_annotations(i).get(task)
            if label_map is None:
                continue
            assert (label_map.valid == before.valid).all()
            for k in np.unique(label_map.values[label_map.valid]).tolist():
                here = label_map.valid & (label_map.values == k)
                assert set(np.unique(before.values[here]).tolist()) <= set(label_map.labeled_classes.class_sets[k])
                met += label_map.labeled_classes.class_sets[k] == tuple(CLASSES[task].index(one) for one in both)
        assert met
        with pytest.raises(DataError, match=r"(?s)superclasses names.*qqqqq.*(Did you mean|Known: )"):
            open_tree(root, {**config, name: {"qqqqq": both}})
        near = rf"(?s)superclasses gives.*{both[0]}x.*Did you mean.*{both[0]}"
        with pytest.raises(DataError, match=near):
            open_tree(root, {**plain, name: {theirs[0]: [f"{both[0]}x"]}})
        with pytest.raises(DataError, match="no class"):
            open_tree(root, {**plain, name: {theirs[0]: []}})


def labels_in(annotation: Any) -> list[int]:
    match annotation:
        case Instances(_, labels, _, ignore):
            return (labels if ignore is None else labels[~ignore]).tolist()
        case DenseMap(values, valid):
            return np.unique(values[valid]).tolist()
        case ImageLabel(values):
            return np.flatnonzero(values).tolist()
    return []


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(300))


def latin(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"\xe9" + data[len(data) // 2 :])


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def hole(path: Path) -> None:
    os.truncate(path, 1 << 40)


def cut(part: float) -> Callable[[Path], None]:
    def cut_off(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])

    return cut_off


DAMAGES = {
    "missing": Path.unlink, "a folder": folder, "a pipe": pipe, "empty": cut(0), "garbage": garbage, "Latin-1": latin,
    "a terabyte": hole, "cut at 10 %": cut(0.1), "cut at 50 %": cut(0.5), "cut at 95 %": cut(0.95),
}  # fmt: skip
MAY_BE_CUT = (".txt", ".csv")
"""Files of lines: a shorter one, and an empty one, may be as valid as the whole."""


def kinds_of_files(root: Path) -> list[Path]:
    """The second file (or the only one) of every folder and ending: all files of a kind are read alike."""
    kinds: dict[tuple, list[Path]] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        kinds.setdefault((path.parent, path.suffix), []).append(path)
    return [paths[min(1, len(paths) - 1)] for paths in kinds.values()]


@pytest.mark.fault("D13")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_spoiled_file_is_never_passed_over_in_silence(tree, damage, tmp_path):
    root, config = tree
    samples_before, reports_before = outcome(root, config)
    for number, file in enumerate(kinds_of_files(root)):
        if damage == "Latin-1" and file.suffix in (".jpg", ".png", ".npy", ".npz", ".tif", ".pgm", ".pfm"):
            continue
        other = tmp_path / str(number)
        shutil.copytree(root, other)
        path = other / file.relative_to(root)
        DAMAGES[damage](path)
        samples, reports = outcome(other, config)
        new = [report for report in reports if report not in reports_before]
        valid = damage.startswith(("cut", "empty")) and path.suffix in MAY_BE_CUT
        valid = valid or (damage == "missing" and config["format"] == "image_labels")
        assert new or samples == samples_before or valid, f"{path}: {samples_before} became {samples}"
        assert all(len(report) < 3000 and report.replace("\n", " ").isprintable() for report in reports), reports
        if path.suffix in (".json", ".xml") and path.is_file() and samples != samples_before:
            assert any(path.name in report for report in new), (path, reports)


@pytest.mark.fault("D14")
def test_files_that_link_out_are_refused(tree, tmp_path):
    root, config = tree
    named = {(root / value).resolve() for value in config.values() if isinstance(value, str)}
    for number, file in enumerate(kinds_of_files(root)):
        alone = len(list(file.parent.glob(f"*{file.suffix}"))) == 1
        if file in named or (alone and file.suffix in (".txt", ".json", ".yaml")):
            continue  # the user's own: found by the name that the recipe or the format gives it
        other, outside = tmp_path / str(number), tmp_path / f"outside{file.suffix}"
        shutil.copytree(root, other)
        shutil.copyfile(file, outside)
        (other / file.relative_to(root)).unlink()
        (other / file.relative_to(root)).symlink_to(outside)
        _, reports = outcome(other, config)
        refused = any("leads out" in report for report in reports)
        assert refused or not matters(outside, other, config), f"{file} was followed: {reports}"


def matters(outside: Path, root: Path, config: dict[str, Any]) -> bool:
    """Whether what the file outside holds changes what is read."""
    found = outcome(root, config)
    outside.write_bytes(b"\0")
    return outcome(root, config) != found


def test_an_empty_folder_of_images_is_an_error_that_names_it(copied):
    root, config = copied
    for path in open_tree(root, config).readers[0].images:
        path.unlink()
    with pytest.raises(DataError) as caught:
        open_tree(root, config)
    assert str(root) in str(caught.value)


def fingerprint(root: Path) -> dict[str, tuple]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_size, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
    }


def test_nothing_is_written_to_the_data(copied):
    root, config = copied
    before = fingerprint(root)
    outcome(root, config)
    assert fingerprint(root) == before


def test_the_tree_may_be_read_only(copied):
    root, config = copied
    expected = outcome(root, config)
    for path in root.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert outcome(root, config) == expected
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_readers_of_the_same_images_make_one_source(copied):
    root, config = copied
    alone = open_tree(root, config)
    images = alone.readers[0].images
    shared = Path(os.path.commonpath([path.parent for path in images]))
    if shared == root:  # images of several folders: not a folder of its own
        shared = images[0].parent
    other = {"format": "image_labels", "images": str(shared.relative_to(root)), "patterns": {"*": "night"}}
    joined = open_tree(root, config, other)
    assert isinstance(joined, DataSource)
    assert {picture.path for picture in joined.records} >= set(images)
    index = next(i for i, picture in enumerate(joined.records) if picture.path == images[0])
    if "classification" in alone.tasks:
        with pytest.raises(DataError, match="two of its readers label task 'classification'"):
            joined.load_sample(index)
        return
    sample = joined.load_sample(index)
    assert sample.annotations["classification"].values.tolist() == [0, 1]
    assert set(sample.annotations) == {"classification", *alone.load_sample(0).annotations}


def test_strange_names_of_images_are_read(tmp_path):
    """Blanks, newlines, letters beyond ASCII, composed and decomposed: files like any other."""
    names = [
        "a b.png",
        "a\nb.png",
        "é.png",
        "e\u0301.png",
        "-rf.png",
        "日本.PNG",
        "a.b.c.png",
        "#.png",
        "%4.png",
        "*.png",
    ]
    for i, name in enumerate(names):
        write_image(tmp_path / "scenes/day" / f"{i}.png", np.full((8, 8, 3), i, np.uint8))
        (tmp_path / "scenes/day" / f"{i}.png").rename(tmp_path / "scenes/day" / name)
    source = open_tree(tmp_path, {"format": "image_labels", "images": "scenes"}, classification=("day",))
    assert {Path(source.image_id(i)).name for i in range(len(source))} == set(names)
    assert sorted(int(source.load_sample(i).image[0, 0, 0]) for i in range(len(source))) == list(range(len(names)))


def labelled(root: Path, config: dict[str, Any]) -> tuple[str, dict[str, str]] | None:
    """(check sum of all labels, fingerprint) of a source; None where it, or one of its samples, is refused."""
    try:
        source = open_tree(root, config)
        found = source.compute_fingerprints()
        samples = [source.read_annotations(index) for index in range(len(source))]
    except DataError:
        return None
    said = hashlib.sha256()
    for index, sample in enumerate(samples):
        for task, annotation in sorted(sample.items()):
            for name, value in parts(annotation).items():
                said.update(f"{index} {task} {name} {None if value is None else np.asarray(value).tolist()}".encode())
        said.update(repr(source.camera(index)).encode())
    return said.hexdigest(), found


IMAGES = (".png", ".tif", ".pgm", ".pfm")


def other_contents(path: Path, count: int = 30) -> Iterator[bytes]:
    """A label file with another number in it, at some places; a label or depth map with other pixels."""
    data = path.read_bytes()
    stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.suffix in IMAGES else None
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            stored = dict(arrays)
        np.savez(changed := io.BytesIO(), **{name: values[::-1] for name, values in stored.items()})
        yield changed.getvalue()
    elif stored is not None:
        values = np.unique(stored)
        for new in (stored[::-1], np.where(stored == values[-1], values[0], stored)):
            yield cv2.imencode(path.suffix, np.ascontiguousarray(new))[1].tobytes()
    if stored is not None:
        return
    digits = [at for at, byte in enumerate(data) if byte in b"12345678"]
    for at in digits[:: max(1, len(digits) // count)]:
        yield data[:at] + bytes([data[at] + 1]) + data[at + 1 :]


@pytest.mark.fault("T5")
def test_the_fingerprint_is_that_of_what_the_labels_say(copied, tmp_path):
    """It stays when files are touched, read or moved, and changes with any label."""
    root, config = copied
    labels, before = labelled(root, config)
    for path in root.rglob("*"):
        os.utime(path, (1e9, 1e9))
    shutil.copytree(root, tmp_path / "moved", symlinks=True)
    source = open_tree((tmp_path / "moved").resolve(), config)
    assert source.compute_fingerprints() == labelled(root, config)[1] == before
    for index in range(len(source)):
        source.load_sample(index)
    assert source.compute_fingerprints() == before
    pictures = {picture.path for picture in open_tree(root, config).records}
    changed = 0
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.resolve() not in pictures):
        data = path.read_bytes()
        for other in other_contents(path):
            path.write_bytes(other)
            found = labelled(root, config)
            if found is not None and found[0] != labels:
                changed += 1
                assert found[1] != before, f"{path}: {other[:80]!r}"
        path.write_bytes(data)
    assert changed or config["format"] == "image_labels"
    assert labelled(root, config) == (labels, before)
