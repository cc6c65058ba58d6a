"""What the rows D1 to D17 ask for beyond a single reader: the doctor, losses, metrics, offsets, and memory.

Images: `test_data_image_faults`. Loader workers (L1): `test_data_loader`, `test_data_workers`. Archives (S6):
`test_data_archives`. Any file of any format: `test_data_contract`, `test_data_fuzz`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_trees import (
    CLASSES,
    coco_content,
    coco_tree,
    depth_maps_tree,
    image_labels_tree,
    label_maps_tree,
    open_tree,
    write_image,
)
from doctor_cases import build_recipe, finding_kinds, run_doctor
from hypothesis import given, settings
from hypothesis import strategies as st
from trees_street import cityscapes_instances_tree

from perception.config import validate_config
from perception.data import AugmentConfig
from perception.data.collate import collate
from perception.data.loader import make_evaluation_loader, make_train_loader
from perception.data.mixture import Mixture
from perception.data.sampler import MixConfig
from perception.files.strict_json import read_json
from perception.metrics.detection import DetectionMetric
from perception.model import ModelConfig, MultiTaskModel
from perception.nn.backbone import BackboneConfig
from perception.tasks import TASKS, sum_loss_terms
from perception.types import DataError, Instances

SIZE = (64, 96)


@pytest.mark.fault("D1")
@pytest.mark.parametrize("fault", ["truncated", "flipped", "empty", "HTML"])
def test_the_doctor_names_a_damaged_image(tmp_path, fault):
    mapping = build_recipe(tmp_path)
    path = tmp_path / "train/coco/images/001.jpg"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if fault == "flipped":
        data[middle : middle + 40] = bytes(byte ^ 0x5A for byte in data[middle : middle + 40])
    path.write_bytes({"truncated": data[:middle], "empty": b"", "HTML": b"<!DOCTYPE html>", "flipped": data}[fault])
    found = run_doctor(tmp_path, mapping)
    assert "damaged_image" in finding_kinds(found)
    finding = next(finding for finding in found.findings if finding.code == "damaged_image")
    assert any("001.jpg" in example for example in finding.examples)


@pytest.mark.fault("D5")
def test_one_of_many_images_missing_is_skipped_all_of_them_name_the_root(tmp_path):
    trees = [coco_tree(tmp_path, 4), image_labels_tree(tmp_path, 4)]
    for config, folder in zip(trees, ("coco/images", "scenes"), strict=True):
        source = open_tree(tmp_path, config)
        for path in (tmp_path / folder).rglob("*.jpg"):
            path.unlink()
        with pytest.raises(DataError, match=str(tmp_path)):
            Mixture([source], SIZE).load_sample(0)
    with pytest.raises(DataError, match=rf"none of its 4 images is under {tmp_path}/coco/images, the first is"):
        open_tree(tmp_path, trees[0])


@pytest.mark.fault("D5")
def test_a_name_in_other_letters_is_told(tmp_path):
    """Capitals differ, or accents are letters of their own: macOS and Windows take such names for the same."""
    for on_disk, listed in (("A.JPG", "a.jpg"), ("e\u0301.jpg", "é.jpg")):
        root = tmp_path / listed
        content = coco_content(4)
        content["images"][0]["file_name"] = listed
        config = coco_tree(root, 4, content)
        (root / "coco/images/000.jpg").rename(root / "coco/images" / on_disk)
        source = open_tree(root, config)
        assert source.problems["missing images"] == 1
        for path in (root / "coco/images").glob("0*.jpg"):
            path.unlink()
        with pytest.raises(DataError, match=f"there is {on_disk!r}: different capitals or Unicode composition"):
            open_tree(root, config)


@pytest.mark.fault("D6")
def test_maps_of_one_image_that_differ_in_size(tmp_path):
    """Also where the image's own size is not asked for."""
    config = cityscapes_instances_tree(tmp_path)
    path = next((tmp_path / "city/gtFine/train/ulm").glob("*labelIds.png"))
    write_image(path, np.full((480, 640), 7, np.uint8))
    source = open_tree(tmp_path, config)
    name = path.name.removesuffix("_gtFine_labelIds.png")
    index = next(i for i, picture in enumerate(source.records) if picture.path.name.startswith(name))
    with pytest.raises(DataError, match="640 x 480"):
        source.read_annotations(index)


def perfect(target: Instances) -> Instances:
    return Instances(target.boxes, target.labels, np.linspace(0.9, 0.8, len(target.boxes), dtype=np.float32))


@pytest.mark.fault("D10")
@pytest.mark.fault("D8")
@pytest.mark.fault("D7")
def test_whatever_boxes_a_file_holds_the_rest_can_be_evaluated(tmp_path):
    """Annotation id 0 counts (to pycocotools it is "not matched"); boxes that would crash an evaluator are gone."""
    content = coco_content(4)
    bad = [[1, 1, 0, 5], [1, 1, 5, -2], [1e300, 1, 5, 5], [1, 1, 1e30, 1e30], [-50, -50, 9, 9], [500, 1, 5, 5]]
    for number, box in enumerate(bad):
        content["annotations"].append({**content["annotations"][0], "id": 100 + number, "bbox": box})
    content["annotations"][0]["id"] = 0
    text = json.dumps(content).replace("1e+300", "1e400")
    source = open_tree(tmp_path, coco_tree(tmp_path, 4, text))
    assert sum(source.problems.values()) >= len(bad)
    metric = DetectionMetric(CLASSES["detection"])
    for index in range(len(source)):
        target = source.read_annotations(index)["detection"]
        metric.update(str(index), perfect(target), target)
    assert metric.compute()["ap"] == pytest.approx(1.0)
    assert metric.compute_per_class()["vehicle"]["count"] == 3


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads that wait for one another on a busy machine take seconds for a network as small as this."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_network(*tasks: str) -> MultiTaskModel:
    torch.manual_seed(0)
    configs = {}
    for task in tasks:
        kind = TASKS[task].Config
        configs[task] = kind(classes=CLASSES[task]) if CLASSES[task] else kind()
    return MultiTaskModel(ModelConfig(backbone=BackboneConfig(name="test_efficientnet", weights="none")), configs)


@pytest.mark.fault("D12")
@pytest.mark.parametrize("mask", [{}, {"segmentation": {"size": [48, 64], "counts": [0, 3072]}}])
def test_a_crowd_is_an_ignore_region_in_loss_and_metric(tmp_path, mask):
    """A crowd over the whole image: no class score is pushed anywhere, and no detection in it is wrong."""
    content = coco_content(2)
    crowd = {"id": 1, "image_id": 10, "category_id": 3, "bbox": [0, 0, 64, 48], "iscrowd": 1, **mask}
    content["annotations"] = [crowd]
    content["categories"].append({"id": 9, "name": "bike"})
    source = open_tree(tmp_path, coco_tree(tmp_path, 2, content))
    plain = validate_config(AugmentConfig, {"scale": [1, 1], "flip": 0, "color": 0, "degrade": 0})
    mixture = Mixture([source], SIZE, plain)
    samples = [mixture.load_sample(p) for p in range(2)]
    samples.sort(key=lambda sample: sample.id)
    network = small_network("detection").train()
    for sample, pushed in zip(samples, (False, True), strict=True):
        batch = collate([sample, sample], ("detection",))
        target = batch.annotations["detection"][0]
        assert len(target.boxes) == (0 if pushed else 1)
        raw = network(batch.images)["detection"]
        raw.logits.retain_grad()
        sum_loss_terms(
            network.tasks["detection"].total_loss_terms(raw, batch.annotations["detection"], batch.cameras)
        ).backward()
        region = target.boxes[0] if len(target.boxes) else torch.tensor([0, 0, SIZE[1], SIZE[0]])
        inside = ((raw.points >= region[:2]) & (raw.points <= region[2:])).all(1)
        assert inside.sum() > len(inside) / 2
        assert bool(raw.logits.grad[:, inside].any()) is pushed
    target = source.read_annotations(0)["detection"]
    metric = DetectionMetric(CLASSES["detection"])
    whole = Instances(np.array([[1, 1, 9, 9]], np.float32), np.array([0]))
    metric.update("crowd", perfect(whole), target)
    metric.update("object", Instances(whole.boxes, whole.labels, np.array([0.5], np.float32)), whole)
    assert metric.compute()["ap"] == pytest.approx(1.0)


WORDS = st.text(st.sampled_from('aé日"\\{}[]:,N \u2028'), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(WORDS, VALUES, min_size=1, max_size=4)


@pytest.mark.fault("D13")
@settings(max_examples=120, deadline=None)
@given(
    before=OBJECTS,
    after=VALUES,
    fault=st.sampled_from(["NaN", "-Infinity", "twice"]),
)
def test_the_offset_of_a_nan_or_a_key_given_twice_is_right(tmp_path_factory, before, after, fault):
    path = tmp_path_factory.mktemp("json") / "a.json"
    head = json.dumps(before, ensure_ascii=False)[:-1] + ", "
    if fault == "twice":
        text = f'{head}"zz": 1, "zz": {json.dumps(after, ensure_ascii=False)}}}'
        at = text.rindex('"zz"')
    else:
        text = f'{head}"zz": {fault}, "yy": {json.dumps(after, ensure_ascii=False)}}}'
        at = len(head) + len('"zz": ')
    path.write_text(text, "utf-8")
    with pytest.raises(DataError) as caught:
        read_json(path)
    assert f"{path}: " in str(caught.value)
    assert re.search(rf"at byte {len(text[:at].encode())}\b", str(caught.value))


@pytest.mark.fault("D13")
@settings(max_examples=60, deadline=None)
@given(
    content=OBJECTS,
    part=st.floats(0, 1),
    bad=st.sampled_from([b"", b"\xff", b"\0"]),
)
def test_the_offset_where_json_ends_or_is_no_utf8_is_right(tmp_path_factory, content, part, bad):
    path = tmp_path_factory.mktemp("json") / "a.json"
    data = json.dumps(content, ensure_ascii=False).encode()
    at = int(part * (len(data) - 1))
    path.write_bytes(data[:at] + bad)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))} .*at byte \d+") as caught:
        read_json(path)
    named = int(re.search(r"at byte (\d+)", str(caught.value))[1])  # type: ignore[index]
    assert named <= at
    if bad == b"\0":
        assert named == at


READ = """
import resource, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from data_trees import open_tree
from perception.types import ConfigError, DataError
resource.setrlimit(resource.RLIMIT_AS, (1500 << 20, 1500 << 20))
root = Path(sys.argv[1])
for name in sorted(p.name for p in root.iterdir()):
    at = root / name
    configs = {
        "json": {"format": "coco", "images": "images", "annotations": name},
        "txt": {"format": "segmentation_masks", "images": "images", "masks": "masks", "class_file": name},
        "csv": {"format": "image_labels", "images": "images", "csv": name},
    }
    if at.suffix[1:] in configs:
        begun = time.monotonic()
        try:
            open_tree(root, configs[at.suffix[1:]])
            said = "opened"
        except (DataError, ConfigError) as error:
            said = f"DataError {len(str(error))} {error}"
        except BaseException as error:
            said = f"ESCAPED {error!r}"
        print(name, f"{time.monotonic() - begun:.1f}", said.replace("\\n", " ")[:400], sep="|")
"""


def evil_files(root: Path) -> None:
    label_maps_tree(root)
    (root / "maps/images").rename(root / "images")
    (root / "maps/masks").rename(root / "masks")
    image = {"id": 1, "file_name": "000.jpg", "height": 48, "width": 64}
    category = {"id": 1, "name": "vehicle"}
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}

    def coco(name: str, **parts: Any) -> str:
        text = json.dumps({"images": [image], "annotations": [box], "categories": [category], **parts})
        (root / f"{name}.json").write_text(text)
        return text

    coco("many", annotations=[{**box, "id": i} for i in range(100_000)])
    coco("classes", categories=[{"id": i, "name": f"c{i}" * 20} for i in range(50_000)])
    coco("same_hash", images=[{**image, "id": i * (2**61 - 1)} for i in range(20_000)], categories=[])
    coco("surrogate", images=[{**image, "file_name": "\ud800.jpg"}])
    coco("long_name", images=[{**image, "file_name": "x" * 5_000_000}])
    for number, side in enumerate((10**400, 10**10, 2**63, True, "64", 1e300)):
        coco(f"width_{number}", images=[{**image, "width": side}])
    whole = coco("sound")
    for name, text in {
        "list": "[" + "1," * 1_000_000 + "1]",
        "digits": "[" + "9" * 4000 + ",1,5,5]",
        "infinite": "[1e400,1e400,1e400,1e400]",
        **{f"deep_{depth}": "[" * depth + "]" * depth for depth in (*range(900, 1000, 7), 100_000)},
    }.items():
        (root / f"{name}.json").write_text(whole.replace("[1, 1, 5, 5]", text))
    (root / "open.json").write_text("[" * 100_000)
    (root / "objects.json").write_text('{"a":' * 100_000)
    (root / "columns.csv").write_text("file," + ",".join(f"c{i}" for i in range(1_000_000)) + "\n")
    (root / "some_columns.csv").write_text("file," + ",".join(f"c{i}" for i in range(100_000)) + "\n000.jpg\n")
    (root / "nul.csv").write_bytes(b"file,label\n000.jpg,d\0ay\n")
    (root / "unclosed.csv").write_text('file,label\n"000.jpg,day\n' + "001.jpg,day\n" * 100_000)
    (root / "field.csv").write_text("file,label\n000.jpg," + "x" * 900_000 + "\n")
    (root / "names.txt").write_text("\n".join(f"class number {i}" for i in range(300_000)))
    (root / "line.txt").write_text("x" * 10_000_000)
    (root / "utf16.txt").write_text("sky\nroad\ncar\n", "utf-16")
    (root / "gap.txt").write_text("sky\n\nroad\ncar\n")
    for ending, head in (("txt", b"sky\nroad\n"), ("csv", b"file,label\n"), ("json", b"{")):
        (root / f"hole.{ending}").write_bytes(head)
        os.truncate(root / f"hole.{ending}", 3 << 30)
        os.mkfifo(root / f"pipe.{ending}")
        (root / f"zero.{ending}").symlink_to("/dev/zero")
        (root / f"loop.{ending}").symlink_to(f"loop.{ending}")


OPENED = {"sound.json", "many.json", "infinite.json", "digits.json", "width_4.json", "utf16.txt"}
"""Sound, but for boxes that are none, which are counted; a number as text, UTF-16 with its mark."""


@pytest.mark.fault("D13")
def test_evil_label_files_are_refused_in_little_memory_and_time(tmp_path):
    evil_files(tmp_path)
    command = [sys.executable, "-W", "error", "-c", READ, str(tmp_path), str(Path(__file__).parents[1] / "helpers")]
    surroundings = {**os.environ, "PERCEPTION_CACHE": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=surroundings)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split("|", 2) for line in done.stdout.splitlines()]
    assert len(lines) > 40
    wrong = [
        line
        for line in lines
        if (line[2] != "opened" if line[0] in OPENED else not line[2].startswith("DataError"))
        or float(line[1]) > 5
        or (line[2].startswith("DataError") and int(line[2].split()[1]) > 3000)
    ]
    assert not wrong, "\n".join("|".join(line) for line in wrong)


@pytest.mark.fault("D17")
def test_images_without_boxes_and_samples_without_labels_train_and_an_empty_set_raises(tmp_path):
    """Finite losses, zero where nothing is labeled, every parameter in the graph."""
    empty = {**coco_content(4), "annotations": []}
    sources = [
        open_tree(tmp_path, coco_tree(tmp_path, 4, empty), name="boxes"),
        open_tree(tmp_path, label_maps_tree(tmp_path), name="maps"),
        open_tree(tmp_path, depth_maps_tree(tmp_path), name="depth"),
        open_tree(tmp_path, image_labels_tree(tmp_path), name="scenes"),
    ]
    network = small_network(*CLASSES).train()
    by_source = validate_config(MixConfig, {"batches": "by_source"})
    labeled_by = {"boxes": "detection", "maps": "segmentation", "depth": "depth", "scenes": "classification"}
    mixture = Mixture(sources, SIZE, mix=by_source, batch_size=2)
    seen = set()
    for batch in make_train_loader(mixture, tuple(CLASSES), 2, steps=8):
        losses = network.compute_losses(batch)
        labelled = labeled_by[batch.sources[0]]
        assert set(losses) == set(CLASSES)
        assert all(torch.isfinite(loss) for loss in losses.values())
        assert all(loss.item() == 0 for task, loss in losses.items() if task != labelled)
        network.zero_grad()
        sum(losses.values()).backward()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in network.parameters())
        seen.add(labelled)
    assert seen == set(CLASSES)
    batch = next(iter(make_evaluation_loader(sources[:1], ("detection",), SIZE, 4)))
    assert all(len(target.boxes) == 0 for target in batch.annotations["detection"])
    with pytest.raises(DataError, match="lists 0 images"):
        open_tree(tmp_path, coco_tree(tmp_path, 4, {**empty, "images": []}))
    with pytest.raises(DataError, match="needs at least one source"):
        Mixture([], SIZE)
