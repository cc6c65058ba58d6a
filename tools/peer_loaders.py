"""Other projects' training loaders over CARLA's images and boxes, for tools/benchmark_data.py: endless batches."""

import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import io, tv_tensors
from torchvision.transforms import v2

os.environ |= {"YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false", "YOLO_AUTOINSTALL": "false"}
os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())

CLASSES = ("vehicle", "bike", "motobike", "traffic_light", "traffic_sign")
IMAGES, ANNOTATIONS = "carla/train", "carla/annotations/instances_train.json"
SIZE, BATCH = (352, 640), 16


def torchvision_loader(data, workers, pillow=False):
    """Its reference recipe's operations: as tensors, or as Pillow's images up to the end."""
    boxes = load_boxes(data)
    jitter = [v2.ScaleJitter(SIZE, (0.5, 1.5)), v2.RandomCrop(SIZE, pad_if_needed=True, fill=114)]
    color = v2.ColorJitter(brightness=0.25, contrast=0.25, saturation=0.4, hue=0.067)
    change = v2.Compose([*jitter, v2.RandomHorizontalFlip(), v2.SanitizeBoundingBoxes(), color, v2.ToImage()])

    def collate(paths):
        samples = []
        for path in paths:
            image = Image.open(path).convert("RGB") if pillow else io.decode_image(io.read_file(str(path)))
            table = torch.tensor(boxes[path]).reshape(-1, 5)
            corners = tv_tensors.BoundingBoxes(table[:, 1:], format="XYWH", canvas_size=(380, 640))  # type: ignore
            image = image if pillow else tv_tensors.Image(image)
            samples.append(change({"image": image, "boxes": corners, "labels": table[:, 0].long()}))
        return {"img": torch.stack([s["image"] for s in samples]), "boxes": [s["boxes"] for s in samples]}

    options = {"num_workers": workers, "persistent_workers": workers > 0, "drop_last": True}
    loader = DataLoader(list(boxes), BATCH, True, collate_fn=collate, **options)  # type: ignore[arg-type]
    while True:
        yield from loader


def ultralytics_loader(data, workers, **options):
    """Its own training set and loader; ``options`` as on its command line. Albumentations' few changes are left out."""
    from ultralytics.cfg import get_cfg  # type: ignore[import-not-found]
    from ultralytics.data.build import build_dataloader, build_yolo_dataset  # type: ignore[import-not-found]

    root = Path(tempfile.mkdtemp())
    (root / "labels").mkdir()
    (root / "images").symlink_to(data / IMAGES)
    for path, table in load_boxes(data).items():
        lines = [f"{int(c)} {(x + w / 2) / 640} {(y + h / 2) / 380} {w / 640} {h / 380}\n" for c, x, y, w, h in table]
        (root / "labels" / f"{path.stem}.txt").write_text("".join(lines))
    settings = get_cfg(overrides={"imgsz": 640, "scale": 0.5, "fliplr": 0.5, "mosaic": 0.0, **options})
    settings.augmentations = []
    names = {"names": dict(enumerate(CLASSES)), "nc": len(CLASSES), "channels": 3}
    dataset = build_yolo_dataset(settings, str(root / "images"), BATCH, names, rect=settings.rect)
    loader = build_dataloader(dataset, BATCH, workers, shuffle=not settings.rect)
    while True:
        yield from loader


def load_boxes(data):
    """Image -> rows of class, x, y, width, height in pixels."""
    content = json.loads((data / ANNOTATIONS).read_text())
    rows = defaultdict(list)
    for box in content["annotations"]:
        rows[box["image_id"]].append([box["category_id"] - 1.0, *box["bbox"]])
    return {data / IMAGES / image["file_name"]: rows[image["id"]] for image in content["images"]}
