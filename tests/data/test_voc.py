"""Pascal VOC: faults D4 to D17, torchvision's reading, and XML that is not to be trusted."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from data_trees import noise_image, open_tree, write_image
from hypothesis import given, settings
from hypothesis import strategies as st
from trees_street import CAR, PERSON, voc_mask, voc_object, voc_tree, voc_xml, write_voc_mask

from perception.config import validate_config
from perception.data.formats.voc import VocConfig
from perception.data.formats.voc_lists import CLASSES
from perception.files.strict_xml import MAX_XML_BYTES, read_xml
from perception.types import ConfigError, DataError

AT = Path("VOCdevkit/VOC2012")
PLAIN = {"format": "voc", "root": str(AT)}
ALL = {"detection": CLASSES, "segmentation": ("background", *CLASSES)}
"""A recipe with all of VOC's names."""


def opened(root: Path, **options):
    return open_tree(root, {**PLAIN, **options}, **ALL)


def with_xml(root: Path, text: str | bytes, count: int = 3) -> None:
    """`voc_tree` with another XML for its first image."""
    voc_tree(root, count)
    data = text if isinstance(text, bytes) else text.encode()
    (root / AT / "Annotations/2007_000000.xml").write_bytes(data)


def one(root: Path, *objects: str, size: tuple[int | str, int | str] = (64, 48), **options):
    """The instances of an image with these objects."""
    with_xml(root, voc_xml("2007_000000", *objects, width=size[0], height=size[1]))
    source = opened(root, segmentation_task=None, **options)
    return source.load_sample(0).annotations["detection"], source


def test_boxes_maps_and_what_is_not_labeled(tmp_path):
    voc_tree(tmp_path)
    source = opened(tmp_path)
    assert [p.path.name for p in source.records] == ["2007_000000.jpg", "2007_000001.jpg", "2007_000002.jpg"]
    assert source.tasks == ("detection", "segmentation")
    assert not source.problems
    first, middle, last = (source.load_sample(i).annotations for i in range(3))
    assert set(first) == {"detection"}  # no segmentation mask
    assert middle["detection"].boxes.tolist() == [[5, 10, 25, 30], [29, 4, 41, 29]]  # a person's head is no object
    assert [CLASSES[i] for i in middle["detection"].labels] == ["car", "person"]
    assert middle["detection"].ignore.tolist() == [False, True]  # difficult; truncated says nothing
    assert middle["detection"].labeled_classes is None
    assert len(last["detection"].boxes) == 0
    stored = voc_mask()
    assert np.array_equal(middle["segmentation"].values, stored)
    assert np.array_equal(middle["segmentation"].valid, stored != 255)
    again = pickle.loads(pickle.dumps(source.readers[0]))
    assert np.array_equal(again.read_annotations(1)["detection"].boxes, middle["detection"].boxes)


def test_torchvision_reads_the_same(tmp_path):
    from torchvision.datasets import VOCDetection, VOCSegmentation

    voc_tree(tmp_path, 5)
    reader = opened(tmp_path).readers[0]
    by_stem = {path.stem: i for i, path in enumerate(reader.images)}
    theirs = VOCDetection(str(tmp_path), "2012", "train")
    assert len(theirs) == 5
    for i in range(len(theirs)):
        content = theirs[i][1]["annotation"]
        instances = reader.read_annotations(by_stem[Path(content["filename"]).stem])["detection"]
        objects = content.get("object", [])
        corners = [[float(item["bndbox"][tag]) for tag in ("xmin", "ymin", "xmax", "ymax")] for item in objects]
        assert np.array_equal(instances.boxes + [1, 1, 0, 0], np.array(corners).reshape(-1, 4))
        assert [CLASSES[label] for label in instances.labels] == [item["name"] for item in objects]
        assert (instances.ignore is not None) == any(item["difficult"] == "1" for item in objects)
    theirs = VOCSegmentation(str(tmp_path), "2012", "train")
    assert len(theirs) == 4
    for i, path in enumerate(theirs.images):
        ours = reader.read_annotations(by_stem[Path(path).stem])["segmentation"]
        assert np.array_equal(ours.values, np.asarray(theirs[i][1]))


def test_the_names_and_ids_are_vocs(tmp_path):
    from torchvision.models.segmentation import FCN_ResNet50_Weights

    categories = FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
    assert list(categories) == ["__background__", *CLASSES]


@given(
    left=st.integers(1, 64), top=st.integers(1, 48), width=st.integers(0, 63), height=st.integers(0, 47),
    one_based=st.booleans(),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_a_box_holds_just_the_pixels_that_its_corners_name(tmp_path_factory, left, top, width, height, one_based):
    right, bottom = min(left + width, 64), min(top + height, 48)
    root = tmp_path_factory.mktemp("voc")
    found, _ = one(root, voc_object("car", (left, top, right, bottom)), one_based=True)
    covered = np.zeros((48, 64), bool)
    x1, y1, x2, y2 = found.boxes[0].astype(int)
    covered[y1:y2, x1:x2] = True
    named = np.zeros((50, 66), bool)
    named[top : bottom + 1, left : right + 1] = True  # in indices from 1
    assert np.array_equal(covered, named[1:49, 1:65])


def test_corners_that_are_edges(tmp_path):
    found, _ = one(tmp_path, voc_object("car", (5.5, 10, 25, 30.25)), one_based=False)
    assert found.boxes.tolist() == [[5.5, 10, 25, 30.25]]


@pytest.mark.parametrize(("difficult", "ignore"), [("ignore", [True, False]), ("object", None), ("background", None)])
def test_difficult_objects(tmp_path, difficult, ignore):
    found, _ = one(tmp_path, voc_object("person", PERSON, 1), voc_object("car", CAR), difficult=difficult)
    assert (None if found.ignore is None else found.ignore.tolist()) == ignore
    assert len(found.boxes) == (1 if difficult == "background" else 2)


def test_rename_ignore_background_and_labels_only(tmp_path):
    voc_tree(tmp_path)
    recipe = {"detection": ("vehicle", "human"), "segmentation": ("thing", "other")}
    options = {
        "detection_rename": {"car": "vehicle", "person": "human"}, "detection_background": "rest",
        "detection_labels_only": ["human"], "segmentation_rename": {"car": "thing", "background": "other"},
        "segmentation_ignore": "rest",
    }  # fmt: skip
    found = open_tree(tmp_path, {**PLAIN, **options}, **recipe).load_sample(1).annotations
    assert found["detection"].labels.tolist() == [0, 1]
    assert found["detection"].ignore.tolist() == [True, True]  # not every car is labeled; a difficult person
    assert found["detection"].labeled_classes.tolist() == [False, True]
    stored, values = voc_mask(), found["segmentation"].values
    assert (values[stored == 7] == 0).all()
    assert (values[stored == 0] == 1).all()
    assert (values[np.isin(stored, (15, 255))] == 255).all()
    with pytest.raises(DataError, match=r"keys detection_.*class 'aeroplane' is not in the recipe"):
        open_tree(tmp_path, PLAIN, **recipe)


def test_one_task_only_reads_the_others_files_not_at_all(tmp_path):
    voc_tree(tmp_path)
    (tmp_path / AT / "Annotations/2007_000001.xml").write_text("<broken")
    source = open_tree(tmp_path, {**PLAIN, "detection_task": None}, **ALL)
    assert source.tasks == ("segmentation",)
    assert [p.path.stem for p in source.records] == ["2007_000001", "2007_000002"]
    voc_tree(tmp_path / "b")
    (tmp_path / "b" / AT / "SegmentationClass/2007_000001.png").write_bytes(b"")
    source = open_tree(tmp_path / "b", {**PLAIN, "segmentation_task": "not in the recipe"}, **ALL)
    assert set(source.load_sample(1).annotations) == {"detection"}
    with pytest.raises(ConfigError, match="two kinds of labels go to one"):
        validate_config(VocConfig, {**PLAIN, "segmentation_task": "detection"})


def test_lists_choose_the_images(tmp_path):
    voc_tree(tmp_path, 6)
    lists = tmp_path / AT / "ImageSets"
    (lists / "Main/val.txt").write_text("2007_000005\n\n2007_000004 \n2007_000004\n")
    source = opened(tmp_path, split="val")
    assert [p.path.stem for p in source.records] == ["2007_000004", "2007_000005"]
    assert set(source.read_annotations(0)) == {"detection", "segmentation"}  # one list serves for both
    (lists / "Segmentation/val.txt").write_text("2007_000003\n")
    source = opened(tmp_path, split="val")
    assert [sorted(source.read_annotations(i)) for i in range(3)] == [["segmentation"], ["detection"], ["detection"]]
    with pytest.raises(DataError, match=r"no list ImageSets/Main/test\.txt nor"):
        opened(tmp_path, split="test")
    (lists / "Main/car_val.txt").write_text("2007_000004 -1\n")
    with pytest.raises(DataError, match=r"car_val\.txt, line 1 is '2007_000004 -1'. Expected one name"):
        opened(tmp_path, split="car_val")
    for content, words in ((b"", "is empty"), (b"\xff\xfd", "not UTF-8"), (b"a\0b", "NUL")):
        (lists / "Main/odd.txt").write_bytes(content)
        with pytest.raises(DataError, match=words):
            opened(tmp_path, split="odd")


def test_files_without_lists(tmp_path):
    voc_tree(tmp_path)
    write_image(tmp_path / AT / "JPEGImages/extra.jpg", noise_image(9))
    source = opened(tmp_path, split=None)
    assert len(source) == 3
    assert source.problems == {"images without labels": 1}


def test_other_sets_in_this_format(tmp_path):
    for i, name in enumerate(("a", "b")):
        write_image(tmp_path / f"set/images/sub/{name}.png", noise_image(i))
        path = tmp_path / f"set/xml/sub/{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(voc_xml(name, voc_object("bike", (1, 2, 10, 12))))
    (tmp_path / "names.txt").write_text("vehicle\nbike\n")
    folders = {"root": "set", "images": "images", "annotations": "xml", "split": None}
    for classes in ("names.txt", ["vehicle", "bike"]):
        source = open_tree(tmp_path, {**PLAIN, **folders, "classes": classes})
        assert source.load_sample(1).annotations["detection"].boxes.tolist() == [[0, 1, 10, 12]]
        assert source.load_sample(1).annotations["detection"].labels.tolist() == [2]
    with pytest.raises(
        DataError, match=r"[ab]\.xml, line 4: class 'bike' is not among the 20 classes.*files contain 'bike'"
    ):
        open_tree(tmp_path, {**PLAIN, **folders})
    for classes in (["a", "a"], ["background", "bike"], [str(i) for i in range(300)], []):
        with pytest.raises(DataError, match="Expected 1 to 253, each once"):
            open_tree(tmp_path, {**PLAIN, **folders, "classes": classes})


@pytest.mark.fault("D5")
def test_missing_images_and_label_files(tmp_path):
    voc_tree(tmp_path, 5)
    (tmp_path / AT / "JPEGImages/2007_000001.jpg").unlink()
    (tmp_path / AT / "Annotations/2007_000002.xml").unlink()
    (tmp_path / AT / "SegmentationClass/2007_000003.png").unlink()
    source = opened(tmp_path)
    assert [p.path.stem[-1] for p in source.records] == ["0", "2", "3", "4"]
    assert source.problems == {
        "missing images": 1, "listed images without an annotation": 1, "listed images without a segmentation mask": 1,
    }  # fmt: skip
    assert set(source.read_annotations(1)) == {"segmentation"}
    (tmp_path / AT / "JPEGImages/2007_000004.jpg").unlink()
    with pytest.raises(DataError, match="2 of its 5 images"):
        opened(tmp_path)
    for name in ("Annotations", "SegmentationClass"):
        for path in (tmp_path / AT / name).iterdir():
            path.unlink()
    with pytest.raises(DataError, match="has no labels for the tasks of the recipe"):
        opened(tmp_path)


@pytest.mark.fault("D6")
def test_another_size_than_the_images(tmp_path):
    with pytest.raises(DataError, match=r"2007_000000\.xml is for 64 x 40 pixels, but .*2007_000000\.jpg has 64 x 48"):
        one(tmp_path, voc_object("car", CAR), size=(64, 40))
    voc_tree(tmp_path)
    write_voc_mask(np.zeros((48, 60), np.uint8), tmp_path / AT / "SegmentationClass/2007_000001.png")
    with pytest.raises(DataError, match=r"2007_000001\.png is for 60 x 48"):
        opened(tmp_path).load_sample(1)


@pytest.mark.fault("D6")
@pytest.mark.parametrize("size", [("0", "0"), ("0", "48"), ("-1", "-1"), ("64", "")])
def test_no_size_is_the_images_own(tmp_path, size):
    found, _ = one(tmp_path, voc_object("car", (1, 1, 99, 48)), size=size)
    assert found.boxes.tolist() == [[0, 0, 64, 48]]
    text = voc_xml("a", voc_object("car", CAR)).replace("<size>", "<sise>").replace("</size>", "</sise>")
    with_xml(tmp_path / "b", text)
    assert len(opened(tmp_path / "b").load_sample(0).annotations["detection"].boxes) == 1
    (tmp_path / "b" / AT / "JPEGImages/2007_000000.jpg").write_bytes(b"no image")
    source = opened(tmp_path / "b")  # training skips the image when it is read
    with pytest.raises(DataError, match=r"2007_000000\.jpg"):
        source.load_sample(0)


@pytest.mark.fault("D6")
@pytest.mark.parametrize(
    "size", [("-2", "48"), ("x", "48"), ("64", "4 8"), ("1e400", "48"), ("nan", "48"), ("9" * 400, "1")]
)
def test_a_size_that_is_no_size(tmp_path, size):
    with pytest.raises(DataError, match=r"2007_000000\.xml, line 3: .*size"):
        one(tmp_path, size=size)


@pytest.mark.fault("D7")
@pytest.mark.parametrize("box", [(9, 9, 5, 20), (9, 9, 20, 8), ("nan", 1, 5, 5), ("inf", 1, 5, 5), (1, 1, "1e400", 5)])
def test_invalid_boxes_are_skipped_and_counted(tmp_path, box):
    found, source = one(tmp_path, voc_object("car", box), voc_object("car", CAR))
    assert found.boxes.tolist() == [[5, 10, 25, 30]]
    assert source.problems["invalid boxes skipped"] == 1


@pytest.mark.fault("D8")
def test_boxes_are_clipped_and_those_outside_skipped(tmp_path):
    boxes = ((-3, -4, 10, 10), (60, 40, 90, 90), (70, 1, 80, 9))
    found, source = one(tmp_path, *(voc_object("car", box) for box in boxes))
    assert found.boxes.tolist() == [[0, 0, 10, 10], [59, 39, 64, 48]]
    assert source.problems["boxes outside the image skipped"] == 1
    assert source.problems["boxes clipped by more than a pixel"] == 2


BROKEN = {
    "empty": (b"", "no element found"),
    "truncated": (voc_xml("a", voc_object("car", CAR))[:300], "not valid XML"),
    "binary": (bytes(range(256)), "not valid XML"),
    "html": ("<!DOCTYPE html><html></html>", "DOCTYPE"),
    "another root": ("<robot/>", "contains <robot>. Expected VOC's <annotation>"),
    "not UTF-8": ("<annotation>é</annotation>".encode("latin-1"), "not valid XML"),
    "an encoding": ('<?xml version="1.0" encoding="unicode_escape"?><annotation/>', "line 1: the encoding"),
    "entities": ('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', "DOCTYPE"),
    "an unknown entity": ("<annotation>&x;</annotation>", "undefined entity"),
    "deep": ("<annotation>" + "<a>" * 5000, "or a depth over"),
    "many": ("<annotation>" + "<a/>" * 300_000 + "</annotation>", "more than 200000 elements"),
    "huge": (b" " * (MAX_XML_BYTES + 1), f"has {MAX_XML_BYTES + 1} bytes"),
    "no name": (voc_xml("a", voc_object("", CAR)), "line 4: an object has no name"),
    "no box": ("<annotation>\n<object><name>car</name></object></annotation>", "line 2: an object has no box"),
    "two boxes": (voc_xml("a", voc_object("car", CAR, 0, "<bndbox/>")), "or several"),
    "no corner": (voc_xml("a", voc_object("car", CAR)).replace("xmin", "xmim"), r"line 6: xmin in <bndbox> is \[\]"),
    "words": (voc_xml("a", voc_object("car", (1, 2, "x", 4))), r"line 6: xmax in <bndbox> is \['x'\]"),
    "endless": (voc_xml("a", voc_object("car", (1, 2, "9" * 5000, 4))), "line 6: xmax in <bndbox>"),
    "difficult": (voc_xml("a", voc_object("car", CAR, "perhaps")), "line 4: difficult is 'perhaps'"),
    "class": (voc_xml("a", voc_object("truck", CAR)), "line 4: class 'truck' is not among the 20 classes"),
}  # fmt: skip


@pytest.mark.fault("D13")
@pytest.mark.parametrize("fault", BROKEN)
def test_xml_that_is_none_of_vocs_says_where(tmp_path, fault):
    content, words = BROKEN[fault]
    with_xml(tmp_path, content)
    with pytest.raises(DataError, match=rf"2007_000000\.xml.*{words}"):
        opened(tmp_path)


@pytest.mark.fault("D13")
def test_no_entity_is_ever_expanded_and_no_file_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    bomb = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    for inner in (f'<!ENTITY a0 "ha">{bomb}', f'<!ENTITY a11 SYSTEM "file://{secret}">', '<!ENTITY % a11 SYSTEM "x">'):
        (tmp_path / "a.xml").write_text(f"<!DOCTYPE a [{inner}]><a>&a11;</a>")
        with pytest.raises(DataError, match="DOCTYPE") as error:
            read_xml(tmp_path / "a.xml")
        assert "ha" * 9 not in str(error.value)


def test_xml_text_encodings_and_lines(tmp_path):
    path = tmp_path / "a.xml"
    for encoding in ("utf-8", "utf-16", "iso-8859-1", "windows-1252"):
        path.write_bytes(
            f'<?xml version="1.0" encoding="{encoding}"?>\n<a>\n <b x="1">ü<!-- --> 1 </b></a>'.encode(encoding)
        )
        root = read_xml(path)
        assert (root.tag, root.line, root.text) == ("a", 2, "")
        assert [(b.tag, b.line, b.text, b.children) for b in root.find_all("b")] == [("b", 3, "ü 1", [])]
        assert root.find_first("c") is None
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="No file at"):
        read_xml(path)


@pytest.mark.fault("D13")
@given(data=st.binary(max_size=300), at=st.integers(0, 700))
@settings(max_examples=80, deadline=None)
def test_bytes_in_an_xml_are_read_or_refused(tmp_path_factory, data, at):
    path = tmp_path_factory.getbasetemp() / "voc.xml"
    valid = voc_xml("a", voc_object("car", CAR)).encode()
    for content in (data, valid[:at] + data + valid[at:]):
        path.write_bytes(content)
        message = str(path)
        try:
            read_xml(path)
        except DataError as error:
            message = str(error)
        assert str(path) in message


@pytest.mark.fault("D14")
@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a\\b", "..", "a/../../b"])
def test_names_that_lead_out(tmp_path, name):
    voc_tree(tmp_path)
    (tmp_path / AT / "ImageSets/Main/train.txt").write_text(f"2007_000000\n{name}\n")
    with pytest.raises(DataError, match=r"Main/train\.txt, line 2: file name .* is refused"):
        opened(tmp_path)


@pytest.mark.fault("D14")
@pytest.mark.parametrize(
    "name", ["Annotations/2007_000001.xml", "SegmentationClass/2007_000001.png", "JPEGImages/2007_000001.jpg"]
)
def test_links_that_lead_out(tmp_path, name):
    voc_tree(tmp_path / "root")
    path = tmp_path / "root" / AT / name
    outside = path.rename(tmp_path / f"secret{path.suffix}")
    path.symlink_to(outside)
    with pytest.raises(DataError, match="leads out of"):
        opened(tmp_path / "root")


@pytest.mark.fault("D15")
def test_label_maps_that_are_none(tmp_path):
    voc_tree(tmp_path)
    path = tmp_path / AT / "SegmentationClass/2007_000001.png"
    ids = np.full((48, 64), 21, np.uint8)
    ids[0] = 3
    write_voc_mask(ids, path)
    with pytest.raises(DataError, match=r"000001\.png .*Expected 0 to 20 or 255.*\{3: 64, 21: 3008\}"):
        opened(tmp_path).load_sample(1)
    write_image(path, np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(DataError, match="RGB PNG"):
        opened(tmp_path).load_sample(1)
