"""Made street data: exact labels, one geometry, files that the ordinary readers and other people's tools understand."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from random import Random

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from perception.data.formats.cityscapes import CityscapesReader
from perception.data.formats.coco import CocoReader
from perception.data.formats.image_labels import ImageLabelsReader
from perception.synthetic import (
    LABEL_NAMES,
    OBJECT_CLASSES,
    SCENE_CLASSES,
    StreetImage,
    render_frames,
    render_image,
    write_dataset,
    write_video,
)
from perception.synthetic.dataset_writer import encode_disparity, encode_instance_ids
from perception.synthetic.ground import CORNER, DASH, SIDE, ZEBRA, assign_zones, sample_road
from perception.synthetic.light import sample_light
from perception.synthetic.mesh import MeshBuilder, Slot
from perception.synthetic.palette import make_palette
from perception.synthetic.render import render_view as see
from perception.synthetic.street_image import MAX_DEPTH, ROAD, SIDEWALK, SKY, TERRAIN
from perception.synthetic.view import create_view
from perception.synthetic.world import StreetObject, World
from perception.types import Camera, DataError

LABELS_OF_CLASS = {
    "person": {24},
    "cyclist": {25, 33},
    "car": {26},
    "truck": {27},
    "traffic light": {19},
    "traffic sign": {20},
}
COUNT = 8


@pytest.fixture(scope="module")
def pictures() -> list[StreetImage]:
    return [render_image(3, index) for index in range(COUNT)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("street") / "data"
    write_dataset(out, COUNT, 3, validation_fraction=0.25)
    return out


def test_is_a_function_of_seed_index_and_size(pictures):
    again = render_image(3, 2)
    for name in StreetImage.__slots__:
        np.testing.assert_array_equal(getattr(again, name), getattr(pictures[2], name), err_msg=name)
    assert not np.array_equal(render_image(4, 2).image, again.image)
    assert not np.array_equal(pictures[3].image, again.image)


@pytest.mark.parametrize("size", [(256, 512), (128, 256), (320, 480), (65, 131)])
def test_has_the_size_that_was_asked_for(size):
    picture = render_image(0, 1, size)
    assert picture.image.shape == (*size, 3)
    assert picture.image.dtype == np.uint8
    assert picture.label_ids.shape == picture.instance_map.shape == picture.depth.shape == size
    assert 0.55 * size[1] < picture.camera.fx < 1.15 * size[1]


def test_only_known_labels_occur_and_scenes_vary(pictures):
    found = set(np.unique(np.stack([picture.label_ids for picture in pictures])).tolist())
    assert found <= set(LABEL_NAMES)
    assert {ROAD, SIDEWALK, SKY, 11, 17, 21, 26} <= found
    scenes = {render_image(5, index, (32, 64)).scene_class for index in range(40)}
    assert scenes == set(SCENE_CLASSES)


def test_boxes_are_tight_around_the_visible_pixels(pictures):
    for picture in pictures:
        assert picture.instance_map.max() == len(picture.boxes) > 0
        for row, (box, area) in enumerate(zip(picture.boxes, picture.areas, strict=True)):
            y, x = np.nonzero(picture.instance_map == row + 1)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert area == len(x)
        assert len(set(picture.track_ids.tolist())) == len(picture.track_ids)
        sides = picture.boxes[:, 2:] - picture.boxes[:, :2]
        assert picture.ignore[sides.min(1) < 4].all()


def test_boxes_and_label_map_agree_on_every_pixel(pictures):
    for picture in pictures:
        for row, kind in enumerate(picture.labels):
            inside = set(np.unique(picture.label_ids[picture.instance_map == row + 1]).tolist())
            assert inside <= LABELS_OF_CLASS[OBJECT_CLASSES[kind]]
        things = np.isin(picture.label_ids, [label for labels in LABELS_OF_CLASS.values() for label in labels])
        np.testing.assert_array_equal(things, picture.instance_map > 0)


def test_what_is_mostly_hidden_is_an_ignore_region():
    pictures = [render_image(8, index) for index in range(30)]
    sides = [(picture.boxes[:, 2:] - picture.boxes[:, :2]).min(1) for picture in pictures]
    hidden = sum((picture.ignore & (side >= 8)).sum() for picture, side in zip(pictures, sides, strict=True))
    shown = sum((~picture.ignore).sum() for picture in pictures)
    assert hidden > 0
    assert shown > 8 * len(pictures)


def test_label_boundaries_are_edges_of_the_image(pictures):
    for picture in pictures:
        gray = cv2.cvtColor(picture.image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        slope = np.abs(cv2.Sobel(gray, cv2.CV_32F, 1, 0))
        change = np.zeros(slope.shape, bool)
        change[:, 1:] = np.isin(picture.label_ids[:, 1:], (11, 23, 26)) & (np.diff(picture.label_ids, axis=1) != 0)
        assert slope[change].mean() > 1.5 * slope[~change].mean()


def test_depth_of_the_ground_equals_the_closed_form(pictures):
    for picture in pictures:
        height, width = picture.label_ids.shape
        camera = picture.camera
        x = ((np.arange(width) + 0.5 - camera.cx) / camera.fx)[None, :]
        y = ((np.arange(height) + 0.5 - camera.cy) / camera.fy)[:, None]
        turned = np.sin(picture.roll) * x + np.cos(picture.roll) * y
        down = np.cos(picture.pitch) * turned + np.sin(picture.pitch)
        ground = np.isin(picture.label_ids, (ROAD, SIDEWALK, TERRAIN)) & (picture.depth > 0)
        assert ground.mean() > 0.1
        np.testing.assert_allclose(picture.depth[ground], (picture.camera_height / down)[ground], rtol=1e-3)


def test_depth_is_positive_bounded_and_unknown_in_the_sky(pictures):
    for picture in pictures:
        assert np.isfinite(picture.depth).all()
        assert (picture.depth[picture.label_ids == SKY] == 0).all()
        known = picture.depth[picture.depth > 0]
        assert known.min() > 0.5
        assert known.max() <= MAX_DEPTH
        assert (picture.depth > 0).mean() > 0.4


def test_size_follows_distance():
    """A person's height in pixels times their distance over the focal length is a person's height in metres."""
    heights = []
    for index in range(40):
        picture = render_image(6, index)
        for row in np.flatnonzero((picture.labels == OBJECT_CLASSES.index("person")) & ~picture.ignore):
            x1, y1, x2, y2 = picture.boxes[row]
            pixels = picture.instance_map == row + 1
            cut = x1 <= 0 or y1 <= 0 or x2 >= 512 or y2 >= 256
            if not cut and pixels.sum() > 0.3 * (x2 - x1) * (y2 - y1) and y2 - y1 > 20:
                heights.append((y2 - y1) * np.median(picture.depth[pixels]) / picture.camera.fy)
    assert len(heights) > 20
    assert 1.5 < np.median(heights) < 1.95


angle = st.floats(-0.2, 0.2)


@settings(max_examples=40, deadline=None)
@given(
    pitch=angle,
    yaw=angle,
    roll=angle,
    height=st.floats(1.0, 3.0),
    x=st.floats(-8, 8),
    y=st.floats(0, 6),
    z=st.floats(12, 90),
)
def test_projection_agrees_with_opencv(pitch, yaw, roll, height, x, y, z):
    camera = Camera(400.0, 410.0, 250.0, 130.0)
    view = create_view(camera, (256, 512), height, 0.0, 0.0, (pitch, yaw, roll))
    ours = view.project(view.to_camera(np.array([[x, y, z]])))[0]
    matrix = np.array([[400.0, 0, 250], [0, 410.0, 130], [0, 0, 1]])
    turn = Rotation.from_matrix(view.rotation).as_rotvec()  # OpenCV's inverse takes 1e-5 for no turn at all
    shift = view.rotation @ np.array([0.0, height, 0.0])
    theirs = cv2.projectPoints(np.array([[x, -y, z]]), turn, shift, matrix, np.zeros(4))[0].ravel()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(pitch=angle, yaw=angle, roll=angle, column=st.integers(0, 63), row=st.integers(0, 31))
def test_rays_invert_the_projection(pitch, yaw, roll, column, row):
    view = create_view(Camera(50.0, 50.0, 31.0, 17.0), (32, 64), 1.5, 0.0, 0.0, (pitch, yaw, roll))
    right, down, ahead = view.compute_rays()[:, row, column].astype(np.float64) * 20.0
    seen = view.to_camera(np.array([[right, 1.5 - down, ahead]]))
    np.testing.assert_allclose(seen[0, 2], 20.0, rtol=1e-5)
    np.testing.assert_allclose(view.project(seen)[0], (column + 0.5, row + 0.5), atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(
    turn=st.floats(-3, 3),
    along=st.floats(7, 40),
    across=st.floats(-3, 3),
    pitch=st.floats(-0.1, 0.1),
    seed=st.integers(0, 9),
)
def test_depth_of_a_box_equals_ray_casting(turn, along, across, pitch, seed):
    half, height = np.array([0.9, 2.1]), 1.6
    build = MeshBuilder(26)
    build.add_box((-half[0], 0.0, -half[1]), (half[0], height, half[1]), Slot.BODY)
    world = World(sample_road(seed), sample_light("clear", Random(seed)), 0.0, [])
    world.add(StreetObject(build.build(), make_palette(), along, across, turn, class_index=2))
    view = create_view(Camera(220.0, 220.0, 128.0, 64.0), (128, 256), 1.5, 0.0, 0.0, (pitch, 0.05, 0.01))
    found = see(world, view, Random(0))
    cos, sin = np.cos(turn), np.sin(turn)
    right, down, ahead = view.compute_rays().astype(np.float64)
    eye = np.array([-across * cos + along * sin, 1.5, -across * sin - along * cos])
    ray = np.stack([right * cos - ahead * sin, -down, right * sin + ahead * cos], -1)
    low, high = np.array([-half[0], 0.0, -half[1]]), np.array([half[0], height, half[1]])
    with np.errstate(divide="ignore"):
        one, two = (low - eye) / ray, (high - eye) / ray
    enter, leave = np.minimum(one, two).max(-1), np.maximum(one, two).min(-1)
    hit = (enter < leave) & (enter > 0)
    painted = found.label_ids == 26
    assert (hit & ~painted).sum() <= 0.03 * hit.sum()
    face = np.minimum(one, two).argmax(-1).astype(np.uint8)
    window = np.ones((3, 3), np.uint8)
    inner = cv2.erode((hit & painted).astype(np.uint8), window) > 0
    inner &= cv2.erode(face, window) == cv2.dilate(face, window)  # not on the edge between two faces
    np.testing.assert_allclose(found.depth[inner], enter[inner], rtol=1e-4)


def test_the_road_has_its_zones_and_curbs():
    road = sample_road(5)
    zones = assign_zones(road, [50.0], 0.0, 100.0)
    assert zones[500] == SIDE
    assert {SIDE, ZEBRA, DASH, CORNER} <= set(zones.tolist())
    middle = road.labels.shape[1] // 2
    assert road.labels[DASH, middle] == ROAD
    assert road.labels[DASH, middle + round((road.right_edge + 0.5) / 0.05)] == SIDEWALK
    assert road.labels[DASH, 0] == TERRAIN
    assert (road.labels[SIDE] == ROAD).all()


def test_disparity_gives_the_depth_back(pictures):
    for picture in pictures:
        stored = encode_disparity(picture)
        known = stored > 0
        np.testing.assert_array_equal(known, picture.depth > 0)
        depth = 0.8 * picture.camera.fx / ((stored[known].astype(np.float64) - 1) / 256)
        error = np.abs(depth / picture.depth[known] - 1)
        assert error.max() < 0.005


def test_instance_ids_follow_cityscapes(pictures):
    for picture in pictures:
        ids = encode_instance_ids(picture)
        np.testing.assert_array_equal(np.where(ids >= 1000, ids // 1000, ids), picture.label_ids)
        cars = np.unique(ids[ids // 1000 == 26])
        assert len(cars) == (picture.labels == OBJECT_CLASSES.index("car")).sum()


def test_ordinary_readers_give_everything_back(folder, pictures):
    names = tuple(LABEL_NAMES.values())
    classes = {"detection": OBJECT_CLASSES, "segmentation": names, "depth": (), "classification": SCENE_CLASSES}
    annotations, images = "annotations/instances_train.json", "leftImg8bit/train"
    coco = CocoReader(CocoReader.Config(images=images, annotations=annotations), folder, classes)
    city = CityscapesReader(CityscapesReader.Config(root=".", ignore="rest"), folder, classes)
    scenes = ImageLabelsReader(
        ImageLabelsReader.Config(images=images, csv="annotations/scenes_train.csv"), folder, classes
    )
    assert len(coco.images) == len(city.images) == len(scenes.images) == 6
    assert (
        [p.resolve() for p in coco.images] == [p.resolve() for p in city.images] == [p.resolve() for p in scenes.images]
    )
    for index, picture in enumerate(pictures[:6]):
        image = cv2.imread(str(city.images[index]))
        np.testing.assert_array_equal(image[:, :, ::-1], picture.image)
        boxes = coco.read_annotations(index)["detection"]
        np.testing.assert_allclose(boxes.boxes[np.lexsort(boxes.boxes.T)], picture.boxes[np.lexsort(picture.boxes.T)])
        assert boxes.ignore.sum() == picture.ignore.sum()
        dense = city.read_annotations(index)
        ids = np.array(list(LABEL_NAMES))[dense["segmentation"].values]
        np.testing.assert_array_equal(ids, picture.label_ids)
        np.testing.assert_array_equal(dense["depth"].valid, picture.depth > 0)
        known = dense["depth"].valid
        np.testing.assert_allclose(dense["depth"].values[known], picture.depth[known], rtol=0.005)
        assert city.camera(index) == picture.camera
        assert (
            SCENE_CLASSES[int(scenes.read_annotations(index)["classification"].values.argmax())] == picture.scene_class
        )


def test_pycocotools_reads_the_boxes(folder, pictures, capsys):
    from pycocotools.coco import COCO

    coco = COCO(str(folder / "annotations/instances_val.json"))
    assert len(coco.imgs) == 2
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(OBJECT_CLASSES)
    expected = sum(len(picture.boxes) for picture in pictures[6:])
    assert len(coco.anns) == expected
    ignored = coco.getAnnIds(iscrowd=True)
    assert len(ignored) == sum(picture.ignore.sum() for picture in pictures[6:])


def test_writing_twice_gives_the_same_bytes(folder, tmp_path):
    write_dataset(tmp_path / "again", COUNT, 3, validation_fraction=0.25)
    first = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    second = {p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*") if p.is_file()}
    assert len(first) == 5 * COUNT + 5
    assert first == second


def test_refuses_a_folder_with_something_in_it(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="not empty"):
        write_dataset(tmp_path, 1, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_appears_whole_or_not_at_all(tmp_path):
    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "out", 4, 0, (64, 128), report_progress=stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    write_dataset(tmp_path / "out", 1, 0, (64, 128), validation_fraction=0.0)
    assert json.loads((tmp_path / "out/street.json").read_text())["count"] == 1


@pytest.fixture(scope="module")
def drive() -> list[StreetImage]:
    return list(render_frames(2, 18, (128, 256), fps=12))


def test_a_drive_keeps_its_identities(drive):
    kinds: dict[int, int] = {}
    seen: dict[int, int] = {}
    for picture in drive:
        for identity, kind in zip(picture.track_ids.tolist(), picture.labels.tolist(), strict=True):
            assert kinds.setdefault(identity, kind) == kind
            seen[identity] = seen.get(identity, 0) + 1
    assert sum(count >= 15 for count in seen.values()) >= 3
    assert len({picture.scene_class for picture in drive}) == 1


def test_a_drive_is_smooth(drive):
    """Nothing comes nearer or leaves by more than 25 m/s, and boxes that lie within the image do not jump."""
    steps = 0
    for before, after in pairwise(drive):
        rows = {identity: row for row, identity in enumerate(before.track_ids.tolist()) if not before.ignore[row]}
        for row, identity in enumerate(after.track_ids.tolist()):
            if identity not in rows or after.ignore[row]:
                continue
            old = rows[identity]
            gone = (
                np.median(before.depth[before.instance_map == old + 1]),
                np.median(after.depth[after.instance_map == row + 1]),
            )
            if min(gone) > 0:
                assert abs(gone[1] - gone[0]) < 25 / 12 + 1.5
            whole = before.boxes[old, 0] > 1 and before.boxes[old, 2] < 255 and min(gone) > 12
            if whole:
                shift = np.abs((after.boxes[row] - before.boxes[old])[[1, 3]]).max()
                assert shift < 0.4 * (before.boxes[old, 3] - before.boxes[old, 1]) + 6
                steps += 1
    assert steps > 40
    differences = [np.abs(a.image.astype(int) - b.image).mean() for a, b in pairwise(drive)]
    assert max(differences) < 30


def test_video_file_matches_its_tracks(tmp_path):
    write_video(tmp_path / "drive.mp4", 0.5, 4, (128, 256), fps=12)
    tracks = json.loads((tmp_path / "drive_tracks.json").read_text())
    video = cv2.VideoCapture(str(tmp_path / "drive.mp4"))
    expected = list(render_frames(4, 6, (128, 256), fps=12))
    for number, picture in enumerate(expected):
        found, image = video.read()
        assert found
        assert np.abs(image[:, :, ::-1].astype(int) - picture.image).mean() < 16
        assert tracks["frames"][number]["identities"] == picture.track_ids.tolist()
        np.testing.assert_allclose(tracks["frames"][number]["boxes"], picture.boxes)
    assert not video.read()[0]
    assert tracks["camera"]["fx"] == expected[0].camera.fx
    with pytest.raises(DataError, match="no image"):
        write_video(tmp_path / "none.mp4", 0.0, 4)


def test_is_fast_enough_to_train_on():
    """40 a second on one core is the aim; the floor here leaves room for a busy machine."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for index in range(30):
            render_image(1, index)
        start = time.process_time()
        for index in range(30):
            render_image(1, index)
        assert 30 / (time.process_time() - start) > 15
    finally:
        cv2.setNumThreads(threads)
