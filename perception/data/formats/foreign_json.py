"""Detection of JSON files from other label tools by their keys, so that the error message can suggest a fix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_AS_COCO = "export it as COCO there"
_KNOWN_FORMATS: tuple[tuple[str, tuple[set[str], ...], str], ...] = (
    ("a project of VGG Image Annotator", ({"_via_img_metadata"},), _AS_COCO),
    ("regions of VGG Image Annotator", ({"filename", "regions"},), _AS_COCO),
    ("labels of LabelMe", ({"shapes", "imagePath"},), "convert it with labelme2coco"),
    ("tasks of Label Studio", ({"data", "annotations"}, {"data", "predictions"}), _AS_COCO),
    ("tasks of Label Studio (JSON-MIN)", ({"annotation_id"},), _AS_COCO),
    ("a set of Datumaro", ({"items", "categories"},), "convert it with datum convert -if datumaro -f coco_instances"),
    ("labels of Supervisely", ({"objects", "size"}, {"classes", "tags"}), _AS_COCO),
    ("labels of CreateML", ({"image", "annotations"}, {"imagefilename", "annotation"}), _AS_COCO),
    ("detections (COCO's results)", ({"image_id", "category_id"},), "give the file of the ground truth"),
    ("frames of Scalabel or BDD100K", ({"frames"}, {"name", "labels"}), "give this reader format: bdd100k"),
    ("samples of FiftyOne", ({"samples"},), "export it as fiftyone.types.COCODetectionDataset"),
)


def describe_known_format(content: object) -> str:
    """Return a sentence (with a leading space) that names the detected format and the fix; empty if unknown."""
    for record in _collect_records(content):
        for what, keys, mend in _KNOWN_FORMATS:
            if any(each <= record.keys() for each in keys):
                return f" It holds {what}: {mend}."
    return ""


def _collect_records(content: object) -> list[Mapping[str, Any]]:
    """The content and its first element, if they are objects."""
    inner = list(content.values()) if isinstance(content, dict) else content if isinstance(content, list) else []
    return [each for each in (content, *inner[:1]) if isinstance(each, dict)]
