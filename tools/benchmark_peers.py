"""Other projects' networks, trained on a recipe's images and measured by this project's metrics.

python tools/benchmark_peers.py RECIPE TASK [key=value ...] --epochs 10 --size 640 --out runs/peers

detection, segmentation and depth: Ultralytics YOLO26n, -sem, -depth from scratch, by its own training with its own
defaults. `--smp` for segmentation: segmentation_models_pytorch's FPN on the same ImageNet EfficientNet-Lite0, by this
project's images and augmentation, cross-entropy and Dice, AdamW, for --steps of the recipe's batch size.

Neither is a dependency: pip install ultralytics segmentation-models-pytorch. Ultralytics is AGPL-3.0: it is called as a
program, nothing of it is in here.
"""

import argparse
import copy
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "NO_ALBUMENTATIONS_UPDATE": "1"}
os.environ.setdefault("YOLO_CONFIG_DIR", str(Path("runs").absolute() / "yolo-settings"))

import cv2
import numpy as np
import torch

from perception import recipe as recipes
from perception.engine.log import progress_bar
from perception.ops.image import compute_letterbox, unwarp_map, warp_image
from perception.recipe import build_model
from perception.types import DenseMap, Instances

YOLO = {"detection": "yolo26n.yaml", "segmentation": "yolo26n-sem.yaml", "depth": "yolo26n-depth.yaml"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("task", choices=YOLO)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=750)
    parser.add_argument("--smp", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    parsed, rest = parser.parse_known_args()
    if strays := [text for text in rest if "=" not in text or text.startswith("-")]:
        parser.error(f"unrecognized arguments: {' '.join(strays)}")
    parsed.overrides += rest
    recipe = recipes.load(parsed.recipe, parsed.overrides, [parsed.task])
    parsed.out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    perceive = (train_smp if parsed.smp else train_yolo)(recipe, parsed)
    seconds = time.perf_counter() - begin
    found = {
        "task": parsed.task,
        "epochs": parsed.epochs,
        "seconds": round(seconds),
        **evaluate_predictor(recipe, parsed.task, perceive),
    }
    (parsed.out / "metrics.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


def evaluate_predictor(recipe, task, predict) -> dict[str, float]:
    """The project's own metrics of ``predict`` (RGB image to annotation, both in source pixels)."""
    head: Any = build_model(recipe, pretrained=False).tasks[task]
    metric = head.create_metric()
    for source in recipes.open_validation_sources(recipe):
        for index in range(len(source)):
            sample = source.load_sample(index)
            if sample.annotations.get(task) is not None:
                metric.update(sample.id, predict(sample.image), sample.annotations[task])
    return {f"{task}/{key}": value for key, value in metric.compute().items()}


def train_yolo(recipe, parsed):
    from ultralytics import YOLO as Network  # type: ignore[import-not-found]
    from ultralytics import settings  # type: ignore[import-not-found]

    settings.update({"sync": False})
    data = write_yolo_dataset(recipe, parsed.task, parsed.out / "data")
    model = Network(YOLO[parsed.task])
    options = {"data": str(data), "epochs": parsed.epochs, "imgsz": parsed.size, "batch": parsed.batch_size}
    quiet = {"plots": False, "val": False, "save_period": -1, "pretrained": False, "amp": False, "workers": 1}
    model.train(
        **options,
        **quiet,
        device="cpu",
        seed=recipe.seed,
        project=str(parsed.out.absolute()),
        name="train",
        exist_ok=True,
    )
    best = Network(str(parsed.out / "train/weights/last.pt"))

    def perceive(image):
        result = best.predict(image[:, :, ::-1], imgsz=parsed.size, conf=0.001, max_det=100, verbose=False)[0]
        if parsed.task == "segmentation":
            mask = result.semantic_mask
            values = np.asarray(getattr(mask, "data", mask)).squeeze().astype(np.int64)
            return DenseMap(values, np.ones(values.shape, bool))
        if parsed.task == "depth":
            values = np.asarray(getattr(result.depth, "data", result.depth)).squeeze().astype(np.float32)
            return DenseMap(values, values > 0)
        boxes = result.boxes.cpu().numpy()
        return Instances(boxes.xyxy.astype(np.float32), boxes.cls.astype(np.int64), boxes.conf.astype(np.float32))

    return perceive


def write_yolo_dataset(recipe, task, out: Path) -> Path:
    """The recipe's images and labels in the layout that Ultralytics expects, once. Returns its data.yaml."""
    description = out / "data.yaml"
    if description.is_file():
        return description
    opened = {"train": recipes.open_training_sources(recipe), "val": recipes.open_validation_sources(recipe)}
    for part, sources in opened.items():
        for number, (source, index) in enumerate((s, i) for s in sources for i in range(len(s))):
            sample = source.load_sample(index)
            label = sample.annotations.get(task)
            if label is not None:
                write_sample(out, part, f"{number:06d}", sample.image, label)
    names = list(getattr(recipe.tasks[task], "classes", ())) or ["depth"]
    lines = [f"path: {out.absolute()}", "train: images/train", "val: images/val", "masks_dir: masks", "names:"]
    lines += [f"  {index}: {name}" for index, name in enumerate(names)]
    if task == "depth":
        lines += ["nc: 1", f"max_depth: {recipe.tasks[task].limits[1]}"]
    description.write_text("\n".join(lines) + "\n")
    return description


def write_sample(out: Path, split: str, name: str, image, label) -> None:
    folders = {kind: out / kind / split for kind in ("images", "labels", "masks", "depth")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folders["images"] / f"{name}.png"), image[:, :, ::-1])
    height, width = image.shape[:2]
    if isinstance(label, Instances):
        keep = np.ones(len(label.labels), bool) if label.ignore is None else ~label.ignore
        sides = label.boxes[keep] / [width, height, width, height]
        rows = np.column_stack([(sides[:, :2] + sides[:, 2:]) / 2, sides[:, 2:] - sides[:, :2]])
        text = [f"{c} {' '.join(f'{v:.6f}' for v in row)}\n" for c, row in zip(label.labels[keep], rows, strict=True)]
        (folders["labels"] / f"{name}.txt").write_text("".join(text))
    elif np.issubdtype(label.values.dtype, np.integer):
        cv2.imwrite(str(folders["masks"] / f"{name}.png"), np.where(label.valid, label.values, 255).astype(np.uint8))
    else:
        np.save(folders["depth"] / f"{name}.npy", np.where(label.valid, label.values, 0).astype(np.float32))


def train_smp(recipe, parsed):
    import segmentation_models_pytorch as smp  # type: ignore[import-not-found]
    from segmentation_models_pytorch.losses import DiceLoss  # type: ignore[import-not-found]

    from perception.data.loader import make_train_loader
    from perception.engine.precision import autocast, move_to_device

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(recipe.seed)
    classes = len(recipe.tasks["segmentation"].classes)
    ours = build_model(recipe)  # its backbone brings the ImageNet weights and the normalization
    network = smp.FPN("tu-tf_efficientnet_lite0", encoder_weights=None, classes=classes)
    network.encoder.model.load_state_dict(ours.backbone.body.state_dict())
    network = network.to(device, memory_format=torch.channels_last).train()
    mean, std = ours.backbone.mean.to(device), ours.backbone.std.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.train.lr, weight_decay=recipe.train.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.train.lr, parsed.steps, pct_start=0.1)
    dice = DiceLoss("multiclass", ignore_index=255)
    batches = make_train_loader(recipes.build_mixture(recipe), ("segmentation",), recipe.train.batch_size, parsed.steps)
    with progress_bar("smp", parsed.steps) as advance_to:
        for step, batch in enumerate(move_to_device(batch, device) for batch in batches):
            maps: list[Any] = batch.annotations["segmentation"]
            labels = torch.stack([torch.where(m.valid, m.values.long(), 255) for m in maps])
            with autocast(recipe.train.precision, device):
                logits = network((batch.images.float() - mean) / std).float()
            loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=255) + dice(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            advance_to(step + 1)
    network.eval()

    def perceive(image):
        frame = compute_letterbox(image.shape[:2], recipe.data.size)
        pixels = torch.from_numpy(warp_image(image, frame).copy()).permute(2, 0, 1)[None].to(device)
        with torch.inference_mode():
            labels = network((pixels.float() - mean) / std)[0].argmax(0).cpu().numpy()
        return DenseMap(
            unwarp_map(labels.astype(np.uint8), frame, smooth=False).astype(np.int64), np.ones(image.shape[:2], bool)
        )

    torch.save(network.state_dict(), parsed.out / "smp.pt")
    cost = measure_milliseconds(recipes.load(parsed.recipe, parsed.overrides), network)
    (parsed.out / "milliseconds.json").write_text(json.dumps(cost))
    print(f"Milliseconds of a forward pass, the recipe's network with all its tasks and this one: {cost}")
    return perceive


def measure_milliseconds(recipe, other) -> dict[str, float]:
    """Of one image on one thread of the CPU, in turns: the recipe's network with all of its tasks, and the other one;
    raw outputs of both."""
    ours = build_model(recipe, pretrained=False).eval()
    other = copy.deepcopy(other).cpu().eval()
    picture = torch.randint(0, 256, (1, 3, *recipe.data.size), dtype=torch.uint8)
    pixels = (picture.float() / 128 - 1).contiguous(memory_format=torch.channels_last)
    calls = {"ours": lambda: ours(picture), "other": lambda: other(pixels)}
    times: dict[str, list[float]] = {name: [] for name in calls}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for _ in range(13):
            for name, call in calls.items():
                begin = time.process_time()
                call()
                times[name].append(time.process_time() - begin)
    torch.set_num_threads(threads)
    return {name: round(1e3 * statistics.median(its[2:]), 1) for name, its in times.items()}


if __name__ == "__main__":
    sys.exit(main())
