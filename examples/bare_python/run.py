"""Run an exported network knowing nothing but its manifest: numpy, onnxruntime, and OpenCV to read images.

    python run.py MODEL.onnx OUT IMAGE... [--focal PIXELS]

Writes to OUT for each image IMAGE.json (boxes, labels, probabilities) and IMAGE.TASK.bin, the map of every task
that has one, row by row: a byte of class, or a little-endian float32 in the task's unit, for each pixel of the image.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--focal", type=float, help="focal length of the camera, in pixels of the images")
    options = parser.parse_args()

    session = onnxruntime.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    manifest = json.loads(session.get_modelmeta().custom_metadata_map["perception.manifest"])
    options.out.mkdir(parents=True, exist_ok=True)
    for path in options.pictures:
        stored = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if stored is None:
            raise SystemExit(f"{path} is not an image that OpenCV reads.")
        picture = np.ascontiguousarray(stored[:, :, ::-1])
        record, maps = predict(session, manifest, picture, options.focal)
        (options.out / f"{path.stem}.json").write_text(json.dumps(record) + "\n")
        for task, values in maps.items():
            (options.out / f"{path.stem}.{task}.bin").write_bytes(values.tobytes())
        print(f"{path}: {', '.join(f'{len(found)} of {task}' for task, found in record.items() if task != 'size')}")


def predict(session, manifest: dict, picture: np.ndarray, focal_length: float | None = None) -> tuple[dict, dict]:
    """(record, maps) of one uint8 RGB image [H, W, 3], in its own pixels."""
    rules = manifest["input"]
    place = picture.shape[:2]  # height and width that the image has in the input
    if rules["preprocess"] == "embedded":
        given, scale = picture[None], (1.0, 1.0)
    else:
        given, place, scale = letterbox(picture, rules)
    outputs = dict(zip(manifest["outputs"], session.run(None, {rules["name"]: given}), strict=True))
    height, width = picture.shape[:2]
    record: dict[str, Any] = {"size": [height, width]}
    maps: dict[str, np.ndarray] = {}
    for name, task in manifest["tasks"].items():
        found = [outputs[f"{name}.{output}"][0] for output in task["outputs"]]
        if task["annotation_type"] == "instances":
            record[name] = decode_instances(found, task, scale, (width, height))
        elif task["annotation_type"] == "label":
            record[name] = {label: float(value) for label, value in zip(task["classes"], found[0], strict=True)}
        else:
            values = found[0][: place[0], : place[1]]
            if task["classes"]:
                maps[name] = cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
            else:
                values = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
                maps[name] = rescale_quantity(values, task, (focal_length or task["default_focal"] * width) * scale[0])
    return record, maps


def divide_rounded(above: int, below: int) -> int:
    """above / below to the nearest whole number, halves to even, as the manifest's schema says."""
    whole, rest = divmod(above, below)
    return whole + (2 * rest > below or (2 * rest == below and whole % 2 == 1))


def letterbox(image: np.ndarray, input_spec: dict) -> tuple[np.ndarray, tuple[int, int], tuple[float, float]]:
    """The input, the (height, width) of the image in it, and (x, y) input pixels per image pixel."""
    (height, width), (high, wide) = image.shape[:2], input_spec["size"]
    size = (
        max(1, min(wide, divide_rounded(width * high, height))),
        max(1, min(high, divide_rounded(height * wide, width))),
    )
    shrinkage = max(width / size[0], height / size[1])
    if 1.4 <= shrinkage < 2.8 and (width, height) != (2 * size[0], 2 * size[1]):
        image = cv2.resize(image, (2 * size[0], 2 * size[1]), interpolation=cv2.INTER_LINEAR)
    method = cv2.INTER_LINEAR if shrinkage < 1.4 else cv2.INTER_AREA
    canvas = np.full((high, wide, 3), input_spec["pad_value"], np.uint8)
    canvas[: size[1], : size[0]] = cv2.resize(image, size, interpolation=method)
    return (
        np.ascontiguousarray(canvas.transpose(2, 0, 1))[None],
        (size[1], size[0]),
        (size[0] / width, size[1] / height),
    )


def decode_instances(
    found: list[np.ndarray], task: dict, scale: tuple[float, float], size: tuple[int, int]
) -> list[dict]:
    """The boxes over the task's threshold, in pixels of the image."""
    boxes, scores, labels = found
    boxes = np.clip(boxes.astype(np.float64) / (*scale, *scale), 0, (*size, *size))
    solid = (boxes[:, 2:] > boxes[:, :2]).all(1)
    return [
        {"box": boxes[i].tolist(), "label": task["classes"][labels[i]], "score": float(scores[i])}
        for i in np.nonzero(solid & (scores >= task["score_threshold"]) & (scores > 0))[0]
    ]


def rescale_quantity(values: np.ndarray, task: dict, focal: float) -> np.ndarray:
    """In the task's unit: what is seen through the canonical lens, through a lens of ``focal`` input pixels."""
    if task["canonical_focal"]:
        values = values * np.float32(focal / task["canonical_focal"])
    return np.clip(values, *task["limits"]) if task["limits"] else values


if __name__ == "__main__":
    main()
