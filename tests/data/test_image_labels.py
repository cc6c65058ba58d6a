"""Labels of whole images, and how readers join."""

import data_trees
import pytest
from data_trees import coco_tree, image_labels_tree, open_tree, write_noise_images

from perception.config import validate_config
from perception.data import DataConfig, SourceConfig, open_source, open_sources
from perception.types import ConfigError, DataError

THREE = {"classification": ("day", "night", "rain")}


def csv_tree(root, text: str, count: int = 4):
    write_noise_images(root / "scenes", count)
    (root / "labels.csv").write_text(text)
    return {"format": "image_labels", "images": "scenes", "csv": "labels.csv"}


def labels(source):
    """Image name -> (values, classes) as lists."""
    found = {}
    for index, picture in enumerate(source.records):
        label = source.read_annotations(index)["classification"]
        found[picture.path.name] = (
            label.values.tolist(),
            None if label.labeled_classes is None else label.labeled_classes.tolist(),
        )
    return found


def test_folder_per_class(tmp_path):
    source = open_tree(tmp_path, image_labels_tree(tmp_path, 2))
    assert labels(source) == {"000.jpg": ([1, 0], None), "001.jpg": ([0, 1], None)}
    with pytest.raises(DataError, match="class 'night' is not in the recipe"):
        open_tree(tmp_path, image_labels_tree(tmp_path, 2), classification=("day", "dusk"))
    ignored = open_tree(
        tmp_path, {**image_labels_tree(tmp_path, 2), "ignore": ["night"]}, classification=("day", "dusk")
    )
    assert labels(ignored) == {"000.jpg": ([1, 0], None)}
    data_trees.write_image(tmp_path / "scenes" / "loose.jpg", data_trees.noise_image(0))
    with pytest.raises(DataError, match=r"loose\.jpg is not in a class folder"):
        open_tree(tmp_path, image_labels_tree(tmp_path, 2))


def test_patterns_first_match_counts_and_no_match_is_unlabeled(tmp_path):
    write_noise_images(tmp_path / "scenes", 12)
    config = {
        "format": "image_labels",
        "images": "scenes",
        "patterns": {"000*": "night", "00?.jpg": "day", "x*": "rain"},
    }
    source = open_tree(tmp_path, config, **THREE)
    found = labels(source)
    assert len(found) == 10
    assert found["000.jpg"] == ([0, 1, 0], None)
    assert found["009.jpg"] == ([1, 0, 0], None)
    assert source.problems == {"patterns that fit no image": 1}
    with pytest.raises(DataError, match="None of the patterns"):
        open_tree(tmp_path, {**config, "patterns": {"z*": "day"}})


def test_csv_single_label(tmp_path):
    config = csv_tree(tmp_path, "file,label\n001.jpg,night\n000.jpg,day\n002.jpg,\n")
    assert labels(open_tree(tmp_path, config)) == {"000.jpg": ([1, 0], None), "001.jpg": ([0, 1], None)}


def test_csv_multi_label_by_list_labels_only_the_classes_it_names(tmp_path):
    config = csv_tree(tmp_path, "file,label\n000.jpg,day;rain\n001.jpg,rain\n002.jpg,\n")
    found = labels(open_tree(tmp_path, {**config, "multi_label": True}, **THREE))
    classes = [True, False, True]  # "night" is never named: it may hold anywhere
    assert found == {"000.jpg": ([1, 0, 1], classes), "001.jpg": ([0, 0, 1], classes), "002.jpg": ([0, 0, 0], classes)}
    with pytest.raises(DataError, match=r"000\.jpg has several classes"):
        open_tree(tmp_path, config, **THREE)


def test_csv_of_roboflow_and_pandas(tmp_path):
    config = csv_tree(tmp_path, "filename, day, night\n000.jpg, 1, 0\n001.jpg,True,FALSE\n002.jpg,0.0,1.0\n003.jpg,,\n")
    source = open_tree(tmp_path, {**config, "multi_label": True})
    values = [source.load_sample(i).annotations["classification"].values.tolist() for i in range(len(source))]
    assert values == [[1, 0], [1, 0], [0, 1]]
    with pytest.raises(DataError, match=r"line 2: day is 'perhaps'. Expected 1, 0"):
        open_tree(tmp_path, csv_tree(tmp_path, "file,day\n000.jpg,perhaps\n"))


def test_csv_multi_label_by_columns_says_which_for_every_image(tmp_path):
    config = csv_tree(tmp_path, "file,day,rain,night\n000.jpg,1,0,\n001.jpg,,1,0\n002.jpg,,,\n003.jpg,0,0,0\n")
    found = labels(open_tree(tmp_path, {**config, "multi_label": True}, **THREE))
    assert found == {
        "000.jpg": ([1, 0, 0], [True, False, True]),
        "001.jpg": ([0, 0, 1], [False, True, True]),
        "003.jpg": ([0, 0, 0], None),
    }
    only = labels(open_tree(tmp_path, {**config, "multi_label": True, "labels_only": ["rain"]}, **THREE))
    assert only["000.jpg"] == ([0, 0, 0], [False, False, True])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,label\n000.jpg,day\n", "the columns are"),
        ("file,label,day\n000.jpg,day,1\n", "not both"),
        ("file,label\n000.jpg\n", "line 2: the row does not have 2 values"),
        ("file,label\n000.jpg,day,night\n", "line 2: the row does not have 2 values"),
        ("file,label\n000.jpg,day\n000.jpg,day\n", r"line 3: 000\.jpg occurs twice"),
        ("file,label\n../000.jpg,day\n", "line 2: file name .* is refused"),
        ("file,label\n000.jpg,dya\n", "class 'dya' is not in the recipe. Did you mean 'day'"),
        ("file,day,night\n000.jpg,2,0\n", "line 2: day is '2'"),
        ("", "the columns are"),
    ],
)
def test_csv_that_is_wrong(tmp_path, text, words):
    with pytest.raises(DataError, match=words):
        open_tree(tmp_path, csv_tree(tmp_path, text))


@pytest.mark.fault("D5")
def test_images_of_a_csv_that_are_missing(tmp_path):
    config = csv_tree(tmp_path, "file,label\n" + "".join(f"{i:03d}.jpg,day\n" for i in range(4)) + "zzz.jpg,day\n")
    source = open_tree(tmp_path, config)
    assert len(source) == 4
    assert source.problems == {"missing images": 1}
    with pytest.raises(DataError, match="none of its 2 images"):
        open_tree(tmp_path, csv_tree(tmp_path, "file,label\nx.jpg,day\ny.jpg,day\n"))


def test_csv_in_another_encoding(tmp_path):
    config = csv_tree(tmp_path, "")
    (tmp_path / "labels.csv").write_bytes("file,label\nä.jpg,day\n".encode("latin-1"))
    with pytest.raises(DataError, match="not a valid CSV file in UTF-8"):
        open_tree(tmp_path, config)


def test_readers_join_on_the_same_images_and_carry_only_what_is_labeled(tmp_path):
    boxes = coco_tree(tmp_path, 4)
    scenes = {"format": "image_labels", "images": "link", "patterns": {"00[12]*": "day"}}
    (tmp_path / "link").symlink_to(tmp_path / "coco/images")
    data_trees.write_image(tmp_path / "coco/images/extra.jpg", data_trees.noise_image(9))
    scenes["patterns"]["extra*"] = "night"
    source = open_tree(tmp_path, boxes, scenes)
    tasks = {picture.path.name: set(source.load_sample(i).annotations) for i, picture in enumerate(source.records)}
    assert tasks == {
        "000.jpg": {"detection"},
        "001.jpg": {"detection", "classification"},
        "002.jpg": {"detection", "classification"},
        "003.jpg": {"detection"},
        "extra.jpg": {"classification"},
    }
    assert len({source.image_id(i) for i in range(len(source))}) == 5
    assert source.image_id(0) == "source/coco/images/000.jpg"


def test_two_readers_of_one_task_on_one_image_are_refused(tmp_path):
    boxes = coco_tree(tmp_path, 4)
    with pytest.raises(DataError, match="two of its readers label task 'detection'"):
        open_tree(tmp_path, boxes, boxes).load_sample(0)


def test_readers_of_tasks_that_are_not_trained_stay_closed(tmp_path):
    labels = [coco_tree(tmp_path, 4), {"format": "image_labels", "images": "nowhere"}]
    config = validate_config(SourceConfig, {"name": "a", "labels": labels})
    source = open_source(config, tmp_path, {"detection": ("vehicle", "pedestrian")})
    assert source is not None
    assert source.tasks == ("detection",)
    assert open_source(config, tmp_path, {"depth": ()}) is None
    with pytest.raises(DataError, match="None of the 1 sources labels any of the tasks depth"):
        open_sources([config], tmp_path, {"depth": ()})
    with pytest.raises(DataError, match="No data folder at"):
        open_source(config, tmp_path / "nowhere", {"detection": ("vehicle",)})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": [250, 512]}, "multiples of 32"),
        ({"workers": -1}, "workers is -1"),
        ({"augment": {"scale": [2, 1]}}, "augment.scale"),
        ({"augment": {"flip": 1.5}}, "augment.flip"),
        ({"train": [{"name": "a", "labels": []}]}, "has no labels"),
        (
            {"train": [{"name": "a", "weight": 0, "labels": [{"format": "coco", "images": "a", "annotations": "b"}]}]},
            "weight 0",
        ),
        (
            {"train": [{"name": "a", "labels": [{"format": "coco", "images": "a", "annotations": "b"}]}] * 2},
            "two sources",
        ),
        ({"train": [{"name": "a", "labels": [{"format": "voc"}]}]}, "train.0.labels.0.root: missing"),
        ({"train": [{"name": "a", "labels": [{"format": "coco", "images": "a", "annotation": "b"}]}]}, "annotation"),
        (
            {
                "train": [
                    {"name": "a", "labels": [{"format": "image_labels", "images": "a", "csv": "b", "patterns": {}}]}
                ]
            },
            "both given",
        ),
    ],
)
def test_config_that_is_wrong(options, words):
    with pytest.raises(ConfigError, match=words):
        validate_config(DataConfig, options)
