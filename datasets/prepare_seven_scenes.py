"""A scene of 7-Scenes as distributed to color images and depth maps in millimetres, 0 = invalid.

SCENE holds seq-01/frame-000000.color.png, .depth.png and TrainSplit.txt, TestSplit.txt.

python datasets/prepare_seven_scenes.py SCENE data/rgbd --every 5
"""

import argparse
import re
from pathlib import Path

import cv2
import numpy as np

INVALID = 65535


def read_sequences(path: Path) -> list[str]:
    """Folder names from the lines "sequence1"."""
    return [f"seq-{int(number):02d}" for number in re.findall(r"(\d+)", path.read_text())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scene", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--every", type=int, default=5, help="keep one frame of so many: neighbors are nearly equal")
    options = parser.parse_args()
    for split, file in (("train", "TrainSplit.txt"), ("val", "TestSplit.txt")):
        count = 0
        for sequence in read_sequences(options.scene / file):
            for path in sorted((options.scene / sequence).glob("frame-*.color.png"))[:: options.every]:
                frame = path.name.removesuffix(".color.png")
                image = cv2.imread(str(path))
                depth = cv2.imread(str(path.with_name(f"{frame}.depth.png")), cv2.IMREAD_UNCHANGED)
                if image is None or depth is None or depth.dtype != np.uint16:
                    raise SystemExit(f"{path} or its depth cannot be read, or the depth is not 16 bit.")
                depth[depth == INVALID] = 0
                name = f"{sequence}_{frame.removeprefix('frame-')}"
                for folder, suffix, content in (("color", ".jpg", image), ("depth", ".png", depth)):
                    target = options.out / folder / split / f"{name}{suffix}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(target), content)
                count += 1
        print(f"{split}: {count} frames")


if __name__ == "__main__":
    main()
