"""Pascal VOC (Everingham et al. 2010): an XML of boxes per image, segmentation masks for some images, split lists.

``JPEGImages/<name>.jpg``, ``Annotations/<name>.xml``, ``SegmentationClass/<name>.png``,
``ImageSets/{Main,Segmentation}/<split>.txt``. Many other data sets store their boxes in such XML files.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from perception.config import config_dataclass
from perception.data.class_names import (
    ClassMap,
    ClassNames,
    Superclasses,
    map_classes,
    map_pixel_classes,
    suggest_class_name,
)
from perception.data.dataset import check_label_size
from perception.data.formats.boxes import (
    MAX_COORDINATE,
    ROTATED_BOXES,
    BoxTable,
    UnlabeledPolicy,
    map_box_labels,
    select_labeled_rows,
)
from perception.data.formats.segmentation_masks import build_lookup_table, read_segmentation_mask
from perception.data.formats.voc_lists import read_class_names, read_image_list, strip_image_suffix
from perception.data.formats.voc_xml import read_objects
from perception.files.folders import (
    find_boundary,
    find_present_files,
    index_by_stem,
    list_files_under,
    list_images,
    require_folder,
    resolve_inside,
)
from perception.files.image_finder import BASE_NAMES_HINT, ImageFinder, ImageNaming
from perception.files.images import ImageError, read_image_size
from perception.files.index_cache import unpack_texts
from perception.files.palettes import MISMATCHED_PALETTES, count_mismatched_palettes
from perception.files.strict_json import quote_value
from perception.types import Annotation, Camera, ConfigError, DataError


@config_dataclass
class VocConfig:
    """Configuration of the reader for Pascal VOC.

    Attributes:
        root: folder of the data set, relative to the data root.
        split: name of the lists ``ImageSets/Main/<split>.txt`` (boxes) and ``ImageSets/Segmentation/<split>.txt``
            (segmentation masks). If only one of them exists, it is used for both. None = all files, without lists.
        format: name of this reader.
        detection_task: detection task of the recipe; None = boxes are not read.
        segmentation_task: segmentation task of the recipe; None = masks are not read.
        images: folder of the images, under ``root``.
        annotations: folder of the XML files, under ``root``.
        masks: folder of the segmentation masks, under ``root``.
        classes: class names in the order of their ids from 1: a list, or a text file relative to the data root, one
            per line. Default: VOC's 20.
        one_based: corners are pixel indices from 1, both inclusive, as in VOC: ``xmin - 1`` is the left edge and
            ``xmax`` the right edge. false = corners are the edges, unchanged.
        difficult: handling of objects with this flag: ignore regions (VOC's evaluation), objects, or background.
        match_by: "path" = an image has the name of its XML; "base" = it has the name in the XML's <filename>, of
            which only the last part counts (`ImageFinder`).
        unlabeled: handling of images whose XML has no object, as in `CocoConfig`.
        detection_rename: class mapping of the boxes to the recipe, as in `CocoConfig`; also the next three.
        detection_ignore: see ``detection_rename``.
        detection_background: see ``detection_rename``.
        detection_labels_only: see ``detection_rename``.
        segmentation_rename: class mapping of the masks, as in `SegmentationMasksConfig`; also the next three. The
            names are ``background`` and those of ``classes``.
        segmentation_ignore: see ``segmentation_rename``.
        segmentation_labels_only: see ``segmentation_rename``.
        segmentation_superclasses: see ``segmentation_rename``.
        max_missing: largest fraction of the images with labels that may be missing.
    """

    root: str
    split: str | None = "train"
    format: Literal["voc"] = "voc"
    detection_task: str | None = "detection"
    segmentation_task: str | None = "segmentation"
    images: str = "JPEGImages"
    annotations: str = "Annotations"
    masks: str = "SegmentationClass"
    classes: str | tuple[str, ...] | None = None
    one_based: bool = True
    difficult: Literal["ignore", "object", "background"] = "ignore"
    match_by: ImageNaming = "path"
    unlabeled: UnlabeledPolicy = None
    detection_rename: dict[str, str] | None = None
    detection_ignore: ClassNames = ()
    detection_background: ClassNames = ()
    detection_labels_only: tuple[str, ...] | None = None
    segmentation_rename: dict[str, str] | None = None
    segmentation_ignore: ClassNames = ()
    segmentation_labels_only: tuple[str, ...] | None = None
    segmentation_superclasses: Superclasses | None = None
    max_missing: float = 0.01

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that the reader may label."""
        return tuple(task for task in (self.detection_task, self.segmentation_task) if task is not None)

    def __post_init__(self) -> None:
        if len(set(self.tasks)) < len(self.tasks):
            raise ConfigError(f"voc: two kinds of labels go to one of the tasks {', '.join(self.tasks)}.")


class VocReader:
    """Reader of images with an XML or a segmentation mask. An XML without objects means no boxes (``unlabeled``)."""

    Config = VocConfig

    def __init__(self, config: VocConfig, root: Path, classes: Mapping[str, tuple[str, ...]]) -> None:
        self.config = config
        self.problems: Counter[str] = Counter()
        self.root = require_folder(root, config.root, "Pascal VOC")
        self.names = read_class_names(config.classes, root)
        self._data_root = root
        xmls, masks = self._find_label_files(classes)
        self.tasks = tuple(
            task for task, files in ((config.detection_task, xmls), (config.segmentation_task, masks)) if task and files
        )
        files, self.num_unannotated = list(xmls.items()), 0
        stored = read_objects(list(xmls.values()))
        names = dict(zip(xmls, unpack_texts(stored["image_names"], stored["image_offsets"]), strict=True))
        if xmls:
            annotated = np.bincount(stored["file"], minlength=len(files)) > 0
            rows, self.num_unannotated = select_labeled_rows(annotated, config.unlabeled, str(self.root), self.problems)
            xmls = dict(files[row] for row in rows)
        stems, self.images = self._match_images(sorted({*xmls, *masks}), names)
        self._xml_paths = [xmls.get(stem) for stem in stems]
        self._mask_paths = [masks.get(stem) for stem in stems]
        self.class_maps: dict[str, ClassMap] = {}
        if xmls:
            place_of = {stem: place for place, stem in enumerate(stems) if stem in xmls}
            places = np.array([place_of.get(stem, -1) for stem, _ in files])
            self._sizes, self._box_table = self._build_box_table(
                files, stored, places, classes[config.detection_task or ""]
            )
        if masks:
            ids = dict(enumerate(("background", *self.names)))
            class_map = self.class_maps[config.segmentation_task or ""] = map_pixel_classes(
                ids.values(), classes[config.segmentation_task or ""], f"{self.root}, keys segmentation_...",
                config.segmentation_rename, config.segmentation_ignore, config.segmentation_labels_only,
                config.segmentation_superclasses,
            )  # fmt: skip
            self._ids, self._table, self._label_space = ids, build_lookup_table(ids, class_map), class_map.label_space
            if unlike := count_mismatched_palettes(list(masks.values()), ids):
                self.problems[MISMATCHED_PALETTES] += unlike

    def read_annotations(self, index: int, size: tuple[int, int] | None = None) -> dict[str, Annotation]:
        """Return the boxes, clipped to the image, and the segmentation uint8 [H, W], if the image has them."""
        picture, xml, mask = self.images[index], self._xml_paths[index], self._mask_paths[index]
        result: dict[str, Annotation] = {}
        if xml is not None and self.config.detection_task:
            check_label_size(str(xml), self._sizes[index], picture, size)
            result[self.config.detection_task] = self._box_table.instances(index)
        if mask is not None and self.config.segmentation_task:
            label_map = read_segmentation_mask(mask, self._table, self._ids, label_space=self._label_space)
            check_label_size(str(mask), label_map.values.shape, picture, size)
            result[self.config.segmentation_task] = label_map
        return result

    def camera(self, index: int) -> Camera | None:
        """Return None: the intrinsics are unknown."""
        return None

    def _find_label_files(self, classes: Mapping[str, tuple[str, ...]]) -> tuple[dict[str, Path], dict[str, Path]]:
        """Name -> XML and name -> segmentation mask, for the split and the tasks that the recipe trains."""
        config = self.config
        lists = self._read_lists()
        result: list[dict[str, Path]] = []
        for task, folder, suffix, kind, what in (
            (config.detection_task, config.annotations, ".xml", "Main", "an annotation"),
            (config.segmentation_task, config.masks, ".png", "Segmentation", "a segmentation mask"),
        ):
            wanted = task in classes and os.path.isdir(self.root / folder)  # noqa: PTH112 - is_dir raises for odd names
            files = self._find_files((self.root / folder).resolve(), suffix) if wanted else {}
            if files and config.split is not None:
                names = lists.get(kind) or next(iter(lists.values()))
                if kind not in lists:
                    self.problems[f"no list ImageSets/{kind}/{config.split}.txt, the other list is used"] += 1
                names = [name if name in files else strip_image_suffix(name) for name in names]
                files = {name: files[name] for name in names if name in files}
                if len(files) < len(names):
                    self.problems[f"listed images without {what}"] += len(names) - len(files)
            result.append(files)
        if not any(result):
            raise DataError(
                f"{self.root} has no labels for the tasks of the recipe in split {config.split}: no XML in "
                f"{config.annotations}/ and no PNG in {config.masks}/. Correct root, split or the folders."
            )
        return result[0], result[1]

    def _read_lists(self) -> dict[str, list[str]]:
        """Type of list -> its names."""
        if self.config.split is None:
            return {}
        found = {}
        for kind in ("Main", "Segmentation"):
            path = self.root / "ImageSets" / kind / f"{self.config.split}.txt"
            if os.path.isfile(path):  # noqa: PTH113
                found[kind] = read_image_list(path)
        if not found:
            raise DataError(
                f"{self.root}: no list ImageSets/Main/{self.config.split}.txt nor ImageSets/Segmentation/"
                f"{self.config.split}.txt. Correct the split, or set split: null to use all files."
            )
        return found

    def _find_files(self, folder: Path, suffix: str) -> dict[str, Path]:
        """Path under ``folder`` without its extension -> file."""
        return index_by_stem(list_files_under(folder, (suffix,), self._data_root), folder)

    def _match_images(self, stems: list[str], names: Mapping[str, str]) -> tuple[list[str], list[Path]]:
        """Stems of the label files and existing images, sorted by path. names: stem -> <filename> of its XML."""
        folder, by = require_folder(self.root, self.config.images, "Pascal VOC images"), self.config.match_by
        listed, boundary = list_images(folder, root=self._data_root), find_boundary(folder, self._data_root)
        files, finder = index_by_stem(listed, folder), ImageFinder(folder, self._data_root, by)
        pairs = []
        for stem in stems:
            if by == "base" and names.get(stem):
                path = finder.find(names[stem], f"{self.root}, <filename> of {stem}.xml")
            else:
                path = files.get(stem) or resolve_inside(folder, f"{stem}.jpg", str(self.root), boundary)
            pairs.append((path, stem))
        pairs.sort()
        for (path, stem), (other, second) in pairwise(pairs):
            if path == other:
                raise DataError(f"{self.root}: {stem} and {second} label the same image {path}. Keep one of them.")
        found = find_present_files(
            [p for p, _ in pairs], folder, str(self.root), self.config.max_missing, self.problems,
            BASE_NAMES_HINT.replace("only the folders in the names are wrong",
                                    "the XML's <filename> is the image's name") if by == "path" else "",
        )  # fmt: skip
        kept = [pair for pair, there in zip(pairs, found, strict=True) if there]
        if self.config.split is None and len(kept) < len(listed):
            self.problems["images without labels"] += len(listed) - len(kept)
        return [stem for _, stem in kept], [path for path, _ in kept]

    def _build_box_table(
        self,
        files: Sequence[tuple[str, Path]],
        stored: Mapping[str, NDArray],
        places: NDArray,
        recipe_classes: tuple[str, ...],
    ) -> tuple[list[tuple[int, int]], BoxTable]:
        """Sizes (height, width) of the images with an XML, and the boxes.

        files, stored: the XMLs and the result of `read_objects`. places: image of each XML, -1 = none.
        """
        config = self.config
        sizes = [(0, 0)] * len(self.images)
        for place, (height, width) in zip(places.tolist(), stored["sizes"].tolist(), strict=True):
            if place >= 0:
                sizes[place] = (height, width) if height else _read_size_or_max(self.images[place])
        found = unpack_texts(stored["names"], stored["name_offsets"])
        unknown = sorted(set(found) - set(self.names))
        if unknown:
            where = np.flatnonzero(stored["name"] == found.index(unknown[0]))[0]
            xml, line = files[int(stored["file"][where])][1], stored["line"][where]
            names = ", ".join(quote_value(name, 30) for name in found[:30])
            raise DataError(
                f"{xml}, line {line}: class {quote_value(unknown[0])} is not among the {len(self.names)} classes."
                f"{suggest_class_name(unknown[0], self.names)} The files contain {names}. "
                "Give this reader classes: [...], or correct the file."
            )
        class_map = map_classes(
            self.names, recipe_classes, f"{self.root}, keys "
                                        "detection_...", config.detection_rename, config.detection_ignore,
            config.detection_background, config.detection_labels_only,
        )  # fmt: skip
        self.class_maps[config.detection_task or ""] = class_map
        labels, doubts = map_box_labels(found, class_map)
        name, difficult = stored["name"], stored["difficult"].astype(bool)
        places = places[stored["file"]]
        if turned := int(stored["turned"][places >= 0].sum()):
            self.problems[ROTATED_BOXES] += turned
        if config.difficult == "background":
            places = np.where(difficult, -1, places)
        ignore = np.array(doubts, bool)[name] | stored["ignored"].astype(bool)
        ignore |= difficult & (config.difficult == "ignore")
        corners = stored["corners"] - ([1, 1, 0, 0] if config.one_based else 0)
        labels = np.array(labels, np.int64)[name]
        return sizes, BoxTable(places, corners, labels, ignore, sizes, class_map, self.problems)


def _read_size_or_max(image_path: Path) -> tuple[int, int]:
    try:
        return read_image_size(image_path)
    except ImageError:  # reported when the image is read
        return int(MAX_COORDINATE), int(MAX_COORDINATE)
