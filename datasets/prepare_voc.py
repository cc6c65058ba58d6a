"""Pascal VOC boxes (one XML per picture) to one COCO JSON, as the CARLA object detection set is distributed.

python datasets/prepare_voc.py IMAGES XMLS OUT.json --classes vehicle bike motobike traffic_light traffic_sign
"""

import argparse
import json
from pathlib import Path
from xml.etree import ElementTree

SUFFIXES = {".jpg", ".jpeg", ".png"}


def boxes(path: Path, classes: list[str]) -> tuple[tuple[int, int], list[tuple[int, list[float]]]]:
    """((width, height), [(category id, [x, y, width, height])]) of one XML. VOC's corners count pixels from 1."""
    root = ElementTree.parse(path).getroot()
    found = []
    for item in root.iter("object"):
        name = item.findtext("name", "").strip()
        if name not in classes:
            raise SystemExit(f"{path}: class '{name}' is not among {', '.join(classes)}.")
        x1, y1, x2, y2 = (float(item.findtext(f"bndbox/{key}", "nan")) for key in ("xmin", "ymin", "xmax", "ymax"))
        found.append((classes.index(name) + 1, [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]))
    return (int(root.findtext("size/width", "0")), int(root.findtext("size/height", "0"))), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("xmls", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", nargs="+", required=True)
    options = parser.parse_args()
    images, annotations = [], []
    for picture in sorted(p for p in options.images.iterdir() if p.suffix.lower() in SUFFIXES):
        path = options.xmls / f"{picture.stem}.xml"
        if not path.is_file():
            print(f"{picture.name} has no XML: left out")
            continue
        (width, height), found = boxes(path, options.classes)
        images.append({"id": len(images) + 1, "file_name": picture.name, "width": width, "height": height})
        for category, box in found:
            annotations.append(
                {"id": len(annotations) + 1, "image_id": len(images), "category_id": category, "bbox": box,
                 "area": box[2] * box[3], "iscrowd": 0}
            )  # fmt: skip
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(options.classes)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    options.out.write_text(json.dumps(content, allow_nan=False))
    print(f"{len(images)} pictures, {len(annotations)} boxes: {options.out}")


if __name__ == "__main__":
    main()
