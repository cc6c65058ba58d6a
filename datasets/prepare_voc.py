"""Pascal VOC boxes (one XML per image) to one COCO JSON, for tools that read only that.

The reader `voc` takes such XML files as they are. Objects marked difficult become crowds: regions that are ignored.

python datasets/prepare_voc.py IMAGES XMLS OUT.json --classes vehicle bike motobike traffic_light traffic_sign
"""

import argparse
import json
from pathlib import Path

from perception.data.formats.voc_xml import read_objects
from perception.files.images import IMAGE_SUFFIXES, read_image_size
from perception.files.index_cache import unpack_texts
from perception.types import DataError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("xmls", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", nargs="+", required=True)
    options = parser.parse_args()
    try:
        convert(options.images, options.xmls, options.out, options.classes)
    except (DataError, ValueError) as error:  # ValueError: a corner that is no number
        raise SystemExit(str(error)) from None


def convert(images: Path, xmls: Path, out: Path, classes: list[str]) -> None:
    pictures = sorted(p for p in images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    labelled = [p for p in pictures if (xmls / f"{p.stem}.xml").is_file()]
    for picture in sorted(set(pictures) - set(labelled)):
        print(f"{picture.name} has no XML: left out")
    files = [xmls / f"{picture.stem}.xml" for picture in labelled]
    found = read_objects(files)
    names = unpack_texts(found["names"], found["name_offsets"])
    records, annotations = [], []
    for i, (picture, size) in enumerate(zip(labelled, found["sizes"].tolist(), strict=True)):
        height, width = size if all(size) else read_image_size(picture)
        records.append({"id": i + 1, "file_name": picture.name, "width": width, "height": height})
    columns = (found[key].tolist() for key in ("file", "line", "name", "difficult", "corners"))
    for file, line, name, difficult, (x1, y1, x2, y2) in zip(*columns, strict=True):
        if names[name] not in classes:
            raise SystemExit(f"{files[file]}, line {line}: class '{names[name]}' is not among {', '.join(classes)}.")
        box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]  # VOC's corners count pixels from 1, both inclusive
        annotations.append(
            {"id": len(annotations) + 1, "image_id": file + 1, "category_id": classes.index(names[name]) + 1,
             "bbox": box, "area": box[2] * box[3], "iscrowd": difficult}
        )  # fmt: skip
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(classes)]
    content = {"images": records, "annotations": annotations, "categories": categories}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(content, allow_nan=False))
    print(f"{len(records)} images, {len(annotations)} boxes: {out}")


if __name__ == "__main__":
    main()
