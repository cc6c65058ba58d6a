"""The prepare scripts for KITTI and NYU Depth V2: what they write is what the readers read."""

import contextlib
import io
import runpy
import shutil
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data_trees import noise_image, open_tree
from trees_kitti import DRIVE, kitti_depth_tree, kitti_selection_tree, kitti_tree, sparse_depth_map, write_text

from perception.data.formats.nyuv2 import CLASSES_13, CLASSES_40

SCRIPTS = Path(__file__).parents[2] / "datasets"


def run(script: str, *arguments: object) -> str:
    """What a script prints. RuntimeError with its message where it ends with one."""
    before, sys.argv = sys.argv, [script, *map(str, arguments)]
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    except SystemExit as end:
        raise RuntimeError(end.code) from None
    finally:
        sys.argv = before
    return output.getvalue()


def arrays_tree(root: Path, count: int = 2) -> Path:
    """The multi-task form: 48 x 64, label 0 to 12 and -1, depth [H, W, 1] in metres, normals."""
    for split in ("train", "val"):
        for i in range(count):
            label = (np.arange(48 * 64).reshape(48, 64) % 14 - 1).astype(np.float64)
            depth = np.full((48, 64, 1), 1.5 + i, np.float32)
            depth[0] = 0
            parts = {"image": noise_image(i) / 255, "label": label, "depth": depth, "normal": np.zeros((48, 64, 3))}
            for part, array in parts.items():
                (root / split / part).mkdir(parents=True, exist_ok=True)
                np.save(root / split / part / f"{i}.npy", array)
    return root


def nyu_readers(split: str, masks: bool = True) -> list[dict]:
    at = f"nyu/{split}"
    labels = {
        "format": "segmentation_masks",
        "images": f"{at}/images",
        "masks": f"{at}/masks",
        "class_file": "nyu/classes.txt",
    }
    return [{"format": "depth_maps", "images": f"{at}/images", "depths": f"{at}/depths"}, *([labels] if masks else [])]


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_nyuv2_from_arrays(form, tmp_path):
    arrays = arrays_tree(tmp_path / "raw/NYUv2")
    if form == "archive":
        arrays = Path(shutil.make_archive(str(tmp_path / "raw/x"), "zip", tmp_path / "raw"))
    assert run("prepare_nyuv2.py", arrays, tmp_path / "nyu") == "train: 2 frames, val: 2 frames\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nyu", "raw"]
    source = open_tree(tmp_path, *nyu_readers("val"), segmentation=CLASSES_13)
    sample = source.load_sample(1)
    assert np.array_equal(sample.image, noise_image(1))
    label = sample.annotations["segmentation"]
    assert label.values.ravel()[:14].tolist() == [255, *range(13)]
    depth = sample.annotations["depth"]
    assert not depth.valid[0].any()
    assert (depth.values[1:] == 2.5).all()
    with pytest.raises(RuntimeError, match=r"is not empty. Nothing is overwritten"):
        run("prepare_nyuv2.py", arrays, tmp_path / "nyu")


@pytest.mark.parametrize(
    ("part", "array", "words"),
    [
        ("image", np.zeros((48, 64)), "Expected an image"),
        ("image", np.full((48, 64, 3), 200.0), "values from 200.0 to 200.0. Expected 0 to 1"),
        ("image", np.full((48, 64, 3), np.nan), "values from nan"),
        ("label", np.full((48, 64), 13.0), "Expected .* of -1 to 12"),
        ("label", np.full((48, 64), 0.5), "Expected .* of -1 to 12"),
        ("label", np.full((48, 64), np.nan), "Expected .* of -1 to 12"),
        ("label", np.zeros((40, 64)), "the image is .* the depth map"),
        ("depth", np.zeros((48, 64), np.uint16), "Expected distances in metres"),
        ("depth", np.zeros((2, 48, 64), np.float32), "Expected distances in metres"),
        ("depth", None, "No array at"),
    ],
)
def test_arrays_that_are_none_leave_nothing(part, array, words, tmp_path):
    arrays = arrays_tree(tmp_path / "raw", 1)
    path = arrays / f"val/{part}/0.npy"
    if array is None:
        path.unlink()
    else:
        np.save(path, array)
    with pytest.raises(RuntimeError, match=words):
        run("prepare_nyuv2.py", arrays, tmp_path / "nyu")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]
    with pytest.raises(RuntimeError, match="No train/image under"):
        run("prepare_nyuv2.py", tmp_path / "missing", tmp_path / "nyu")


class StandIn:
    """An .npz with the face of h5py."""

    def __init__(self, path: Path, mode: str) -> None:
        self.content = dict(np.load(path))

    def __enter__(self) -> dict:
        return self.content

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(params=["stand-in", "h5py"])
def matlab(request, monkeypatch, tmp_path):
    """Writes arrays as nyu_depth_v2_labeled.mat holds them; its path."""
    if request.param == "h5py":
        pytest.importorskip("h5py")
    else:
        monkeypatch.setitem(sys.modules, "h5py", types.SimpleNamespace(File=StandIn))

    def save(**arrays: np.ndarray) -> Path:
        path = tmp_path / "labeled.mat"
        if request.param == "h5py":
            import h5py

            with h5py.File(path, "w") as file:
                for name, array in arrays.items():
                    file[name] = array
        else:
            with path.open("wb") as file:
                np.savez(file, **arrays)
        return path

    return save


def matlab_arrays(count: int = 3) -> dict[str, np.ndarray]:
    images = np.stack([noise_image(i).transpose(2, 1, 0) for i in range(count)])
    depths = np.stack([np.full((64, 48), 1 + i, np.float32) for i in range(count)])
    labels = np.zeros((count, 64, 48), np.uint16)
    labels[:, 10:], labels[:, 20:], labels[:, 30:] = 1, 21, 894
    return {"images": images, "depths": depths, "labels": labels}


def test_nyuv2_as_published(matlab, tmp_path):
    path = matlab(**matlab_arrays())
    mapping = np.zeros(894, int)
    mapping[0], mapping[20], mapping[893] = 39, 1, 40
    write_text(tmp_path / "map40.txt", "\n".join(map(str, mapping)))
    write_text(tmp_path / "train.txt", "1\n3\n")
    out = run("prepare_nyuv2.py", path, tmp_path / "nyu", "--classes", 40, "--mapping", tmp_path / "map40.txt",
              "--split", tmp_path / "train.txt")  # fmt: skip
    assert out == "train: 2 frames, val: 1 frames\n"
    sample = open_tree(tmp_path, *nyu_readers("val"), segmentation=CLASSES_40).load_sample(0)
    assert np.array_equal(sample.image, noise_image(1))
    assert sample.annotations["segmentation"].values[5, [0, 15, 25, 35]].tolist() == [255, 38, 0, 39]
    assert (sample.annotations["depth"].values == 2).all()


def test_nyuv2_as_published_by_the_mappings_of_others(matlab, tmp_path):
    scipy = pytest.importorskip("scipy.io")
    path = matlab(**matlab_arrays())
    forty = np.zeros((1, 894), np.uint8)
    forty[0, 0], forty[0, 20], forty[0, 893] = 39, 1, 40
    thirteen = np.zeros((1, 40), np.uint8)
    thirteen[0, 0], thirteen[0, 38], thirteen[0, 39] = 12, 6, 13
    scipy.savemat(tmp_path / "classMapping40.mat", {"mapClass": forty, "className": np.array(CLASSES_40, object)})
    names = np.array(CLASSES_13, object)
    scipy.savemat(tmp_path / "class13Mapping.mat", {"classMapping13": {"labels13": thirteen, "names": names}})
    scipy.savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[2], [3]]), "testNdxs": np.array([[1]])})
    maps = tmp_path / "classMapping40.mat", tmp_path / "class13Mapping.mat"
    run("prepare_nyuv2.py", path, tmp_path / "nyu", "--mapping", *maps, "--split", tmp_path / "splits.mat")
    sample = open_tree(tmp_path, *nyu_readers("val"), segmentation=CLASSES_13).load_sample(0)
    assert sample.annotations["segmentation"].values[5, [0, 15, 25, 35]].tolist() == [255, 5, 11, 12]
    assert (sample.annotations["depth"].values == 1).all()
    with pytest.raises(RuntimeError, match=r"gives classes up to 40. Expected 13: see --classes"):
        run("prepare_nyuv2.py", path, tmp_path / "b", "--mapping", maps[0])
    scipy.savemat(tmp_path / "other.mat", {"a": forty})
    for file, words in (("other.mat", "has none of mapClass"), ("labeled.mat", "cannot be read")):
        with pytest.raises(RuntimeError, match=words):
            run("prepare_nyuv2.py", path, tmp_path / "b", "--mapping", tmp_path / file)


def test_nyuv2_as_published_without_labels_or_not_at_all(matlab, tmp_path):
    path = matlab(**matlab_arrays())
    assert run("prepare_nyuv2.py", path, tmp_path / "nyu") == "train: 3 frames\n"
    assert len(open_tree(tmp_path, *nyu_readers("train", False))) == 3
    for content, words in (("1 2 3", "maps 3 classes"), ("x", "not all numbers"), ("nan " * 894, "maps 894 classes"),
                           ("-1 " * 894, "maps 894 classes"), ("0 " * 894, "up to 0. Expected 13")):  # fmt: skip
        write_text(tmp_path / "map.txt", content)
        with pytest.raises(RuntimeError, match=words):
            run("prepare_nyuv2.py", path, tmp_path / "b", "--mapping", tmp_path / "map.txt")
    arrays = matlab_arrays()
    path = matlab(**{**arrays, "depths": arrays["depths"][:2]})
    with pytest.raises(RuntimeError, match="holds images"):
        run("prepare_nyuv2.py", path, tmp_path / "b")
    for bad in (matlab(images=arrays["images"]), write_text(tmp_path / "labeled.mat", b"garbage")):
        with pytest.raises(RuntimeError, match="is not the labeled data set"):
            run("prepare_nyuv2.py", bad, tmp_path / "b")


def test_nyuv2_as_published_needs_h5py_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    path = write_text(tmp_path / "labeled.mat", b"")
    with pytest.raises(RuntimeError, match="is read by the package h5py: pip install h5py"):
        run("prepare_nyuv2.py", path, tmp_path / "nyu")


def zipped(path: Path, root: Path, names: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            for file in sorted((root / name).rglob("*.*")) if (root / name).is_dir() else [root / name]:
                archive.write(file, file.relative_to(root))


def test_kitti_from_archives(tmp_path):
    raw, zips = tmp_path / "in", tmp_path / "zips"
    kitti_tree(raw, 6)
    config = kitti_depth_tree(raw)
    kitti_selection_tree(raw)
    write_text(raw / "kit/mapping/train_rand.txt", "3,1,2,6,5,4\n")
    lines = [f"2011_09_26 2011_09_26_drive_000{1 + (i > 2)}_sync 000000000{i}\n" for i in range(6)]
    write_text(raw / "kit/mapping/train_mapping.txt", "".join(lines))
    for part in ("image_2", "label_2", "calib"):
        zipped(zips / f"data_object_{part}.zip", raw / "kitti", [f"training/{part}"])
    zipped(zips / "devkit_object.zip", raw / "kit", ["mapping"])
    zipped(zips / "data_depth_annotated.zip", raw / "kitti_depth", ["train"])
    zipped(zips / "data_depth_selection.zip", raw, ["depth_selection"])
    zipped(zips / f"{DRIVE}.zip", raw / "kitti_raw", [f"2011_09_26/{DRIVE}"])
    zipped(zips / "2011_09_26_calib.zip", raw / "kitti_raw", ["2011_09_26/calib_cam_to_cam.txt"])
    out = run("prepare_kitti.py", tmp_path / "k", zips, "--val", 0.5)
    assert "data_object_image_2.zip: 6 files" in out
    assert out.count("3 images of 1 drives") == 2
    objects = {**kitti_tree(raw, 6), "root": "k/object", "image_list": "k/object/ImageSets/val.txt"}
    val = {path.stem for path in open_tree(tmp_path, objects).readers[0].images}
    train = (tmp_path / "k/object/ImageSets/train.txt").read_text().split()
    assert {frozenset(val), frozenset(train)} == {
        frozenset(f"{i:06d}" for i in part) for part in ((0, 1, 2), (3, 4, 5))
    }
    source = open_tree(tmp_path, {**config, "root": "k/depth", "raw_images": "k/raw"})
    assert np.array_equal(source.load_sample(0).annotations["depth"].valid, sparse_depth_map(0) > 0)
    assert source.camera(0) is not None
    assert len(open_tree(tmp_path, {"format": "kitti_depth", "root": "k/depth_selection", "split": "selection"})) == 3
    again = run("prepare_kitti.py", tmp_path / "k", zips / "devkit_object.zip")
    assert again == "devkit_object.zip: unpacked before\n"
    for arguments, words in (
        (["--val", 0.5], "exists already. Remove it"),
        (["--val", 0.01], "leaves train or val empty"),
        ([tmp_path / "other.zip"], "no archive of KITTI by its name"),
        ([tmp_path / f"{DRIVE.replace('1_s', '9_s')}.zip"], "No archive at"),
    ):
        with pytest.raises(RuntimeError, match=words):
            run("prepare_kitti.py", tmp_path / "k", *arguments)


@pytest.mark.parametrize(
    ("rand", "mapping", "words"),
    [("1,2", "", "expected '<date> <drive> <frame>'"), ("1", "a b\n", "expected '<date>"), ("0", "a b c\n", "1 to 1"),
     ("2", "a b c\n", "1 to 1"), ("x", "a b c\n", "1 to 1"), (b"\xff", "a b c\n", "not UTF-8"),
     (None, "a b c\n", "cannot be read")],
)  # fmt: skip
def test_kitti_development_kits_that_are_none(rand, mapping, words, tmp_path):
    if rand is not None:
        write_text(tmp_path / "object/devkit/mapping/train_rand.txt", rand)
    write_text(tmp_path / "object/devkit/mapping/train_mapping.txt", mapping)
    with pytest.raises(RuntimeError, match=words):
        run("prepare_kitti.py", tmp_path, "--val", 0.5)
