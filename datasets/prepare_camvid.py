"""CamVid as distributed (960 x 720, 32 colors) to images and segmentation masks of the usual 11 classes.

RAW holds 701_StillsRaw_full/, LabeledApproved_full/ and label_colors.txt.

python datasets/prepare_camvid.py RAW data/camvid
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

CLASSES = {
    "sky": ["Sky"],
    "building": ["Archway", "Bridge", "Building", "Tunnel", "Wall"],
    "pole": ["Column_Pole", "TrafficCone"],
    "road": ["LaneMkgsDriv", "LaneMkgsNonDriv", "Road"],
    "pavement": ["ParkingBlock", "RoadShoulder", "Sidewalk"],
    "tree": ["Tree", "VegetationMisc"],
    "sign_symbol": ["Misc_Text", "SignSymbol", "TrafficLight"],
    "fence": ["Fence"],
    "car": ["Car", "OtherMoving", "SUVPickupTruck", "Train", "Truck_Bus"],
    "pedestrian": ["Animal", "CartLuggagePram", "Child", "Pedestrian"],
    "bicyclist": ["Bicyclist", "MotorcycleScooter"],
}
"""The grouping of SegNet (Badrinarayanan et al. 2017); everything else is void."""


def read_colors(path: Path) -> dict[int, int]:
    """Packed color (r << 16 | g << 8 | b) -> class id, 255 = void, from the lines "r g b name"."""
    of = {name: id for id, names in enumerate(CLASSES.values()) for name in names}
    lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    return {int(r) << 16 | int(g) << 8 | int(b): of.get(name, 255) for r, g, b, name in lines}


def colors_to_ids(image: np.ndarray, color_ids: dict[int, int], path: Path) -> np.ndarray:
    """BGR [H, W, 3] to class ids uint8 [H, W]."""
    packed = image.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
    values, inverse = np.unique(packed, return_inverse=True)
    unknown = [f"#{value:06x}" for value in values.tolist() if value not in color_ids]
    if unknown:
        raise SystemExit(f"{path}: colors {', '.join(unknown[:5])} are not in label_colors.txt.")
    return np.array([color_ids[value] for value in values.tolist()], np.uint8)[inverse].reshape(packed.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 360), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--val", type=float, default=0.2, help="share of every sequence, at its end, for validation")
    options = parser.parse_args()
    table = read_colors(options.raw / "label_colors.txt")
    sequences: dict[str, list[Path]] = {}
    for path in sorted((options.raw / "701_StillsRaw_full").glob("*.png")):
        sequences.setdefault(path.stem.split("_")[0], []).append(path)
    for name, paths in sequences.items():
        first = round(len(paths) * (1 - options.val))
        for number, path in enumerate(paths):
            split = "train" if number < first else "val"
            label = options.raw / "LabeledApproved_full" / f"{path.stem}_L.png"
            image, colored = cv2.imread(str(path)), cv2.imread(str(label))
            if image is None or colored is None:
                raise SystemExit(f"{path} or {label} cannot be read.")
            ids = colors_to_ids(colored, table, label)
            for folder, suffix, picture, how in (
                ("images", ".jpg", image, cv2.INTER_AREA),
                ("masks", ".png", ids, cv2.INTER_NEAREST_EXACT),
            ):
                target = options.out / folder / split / f"{path.stem}{suffix}"
                target.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(target), cv2.resize(picture, options.size, interpolation=how))
        print(f"{name}: {first} train, {len(paths) - first} val")
    (options.out / "classes.txt").write_text("\n".join(CLASSES) + "\n")


if __name__ == "__main__":
    main()
