"""NYU Depth V2 as multi-task researchers hand it around, or as published, to images, segmentation masks and depth in
metres.

FROM is one of
- a folder (or an archive of one) with {train,val}/{image,label,depth}/0.npy ...: image [H, W, 3] of 0 to 1, label
  [H, W] of 0 to 12 with -1 = void, depth [H, W] or [H, W, 1] in metres. Surface normals are left alone.
- nyu_depth_v2_labeled.mat (1449 frames). Needs h5py. --mapping says which of its 894 classes become which: a text file
  of 894 numbers, 0 = void, or classMapping40.mat, and with --classes 13 class13Mapping.mat after it (these need scipy).
  --split names splits.mat or a text file with the numbers (from 1) of the training frames.

Writes OUT/{train,val}/{images,masks,depths}/N.{png,png,npy} and OUT/classes.txt for the readers
`segmentation_masks` and `depth_maps`. Fetches nothing.

python datasets/prepare_nyuv2.py FROM data/nyuv2
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from perception.data.formats.nyuv2 import CLASSES_13, CLASSES_40
from perception.files.archives import extract_archive
from perception.files.arrays import read_array
from perception.files.text_files import parse_floats, read_text
from perception.types import DataError

CLASSES = {13: CLASSES_13, 40: CLASSES_40}
RgbdFrame = tuple[str, str, NDArray, NDArray | None, NDArray]
"""Split, name, image uint8 RGB [H, W, 3], label ids uint8 [H, W] with 255 = void, depth float32 [H, W] in metres."""


def read_arrays(root: Path) -> Iterator[RgbdFrame]:
    """The frames of the .npy files. A frame without one of its files is an error."""
    for split in ("train", "val"):
        for path in sorted((root / split / "image").glob("*.npy"), key=lambda path: (len(path.stem), path.stem)):
            image, label, depth = (read_array(root / split / part / path.name) for part in ("image", "label", "depth"))
            yield (
                split,
                path.stem,
                to_uint8_image(image, path),
                to_uint8_ids(label, path.parent.parent / "label" / path.name),
                to_float32_depth(depth, path.parent.parent / "depth" / path.name),
            )


def to_uint8_image(image: NDArray, path: Path) -> NDArray:
    """[H, W, 3] of 0 to 1 (or whole numbers to 255) as uint8."""
    if image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"{path} is {image.dtype} {image.shape}. Expected an image [H, W, 3].")
    whole = image.dtype.kind in "iu"
    low, high = float(image.min()), float(image.max())
    if not (low >= -1e-3 and high <= (255 if whole else 1.001)):
        raise DataError(f"{path} has values from {low} to {high}. Expected 0 to 1, or whole numbers to 255.")
    return (image if whole else (image.clip(0, 1) * 255).round()).astype(np.uint8)


def to_uint8_ids(label: NDArray, path: Path) -> NDArray:
    """Ids with -1 = void as uint8 with 255 = void."""
    label = label[..., 0] if label.ndim == 3 and label.shape[2] == 1 else label
    found = np.unique(label)
    if label.ndim != 2 or not np.isin(found, np.arange(-1, len(CLASSES_13))).all():
        raise DataError(f"{path} is {label.shape} with values {found[:20].tolist()}. Expected [H, W] of -1 to 12.")
    return np.where(label < 0, 255, label).astype(np.uint8)


def to_float32_depth(depth: NDArray, path: Path) -> NDArray:
    """[H, W] or [H, W, 1] as float32 [H, W]."""
    depth = depth[..., 0] if depth.ndim == 3 and depth.shape[2] == 1 else depth
    if depth.ndim != 2 or depth.dtype.kind != "f":
        raise DataError(f"{path} is {depth.dtype} {depth.shape}. Expected distances in metres [H, W].")
    return np.ascontiguousarray(depth, np.float32)


def read_matlab(path: Path, id_table: NDArray | None, train_numbers: set[int] | None) -> Iterator[RgbdFrame]:
    """The frames of the labeled .mat. Its arrays are stored column by column: [frame, ..., W, H].

    id_table: uint8 [895], stored id -> id or 255. train_numbers: numbers (from 1) of the frames for train; None = all
    """
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise SystemExit(f"{path} is read by the package h5py: pip install h5py") from None
    try:
        with h5py.File(path, "r") as file:
            parts: Any = [file[part] for part in ("images", "depths", "labels")]
            images, depths, labels = parts
            if (
                images.ndim != 4
                or images.shape[1] != 3
                or depths.shape != (len(images), *images.shape[2:])
                or (labels.shape != depths.shape)
            ):
                raise DataError(f"{path} holds images {images.shape}, depths {depths.shape}, labels {labels.shape}.")
            for i in range(len(images)):
                split = "train" if train_numbers is None or i + 1 in train_numbers else "val"
                image = np.ascontiguousarray(np.transpose(images[i], (2, 1, 0)), np.uint8)
                depth = np.ascontiguousarray(np.transpose(depths[i]), np.float32)
                stored = np.transpose(labels[i])
                if id_table is not None and int(stored.max()) >= len(id_table):
                    raise DataError(f"{path}, frame {i + 1}: class {stored.max()} is not among {len(id_table) - 1}.")
                yield split, f"{i + 1:05d}", image, None if id_table is None else id_table[stored], depth
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{path} is not the labeled data set: {error}. Expected nyu_depth_v2_labeled.mat.") from error


def build_id_table(mapping_files: list[Path], count: int) -> NDArray:
    """uint8 [895]: stored id -> id from 0, 255 = void."""
    table = np.arange(895)
    for path in mapping_files:
        given = read_numbers(path, ("mapClass", "classMapping13"))
        if not all(number in range(256) for number in given) or table.max() > len(given):
            raise DataError(f"{path} maps {len(given)} classes. Expected whole numbers for {table.max()}.")
        following = np.array([0, *given]).astype(np.int64)
        table = following[table]
    if table.max() != count:
        raise DataError(f"{mapping_files[-1]} gives classes up to {table.max()}. Expected {count}: see --classes.")
    return np.where(table == 0, 255, table - 1).astype(np.uint8)


def read_numbers(path: Path, names: tuple[str, ...]) -> list[float]:
    """The numbers of a text file, or of a variable of a .mat file (the first of ``names`` that it has)."""
    if path.suffix != ".mat":
        return parse_floats(read_text(path).replace(",", " ").split(), str(path), "whole numbers")
    try:
        from scipy.io import loadmat
    except ImportError:
        raise SystemExit(f"{path} is read by the package scipy: pip install scipy. A text file needs none.") from None
    try:
        content = loadmat(path)
        value = next(content[name] for name in names if name in content)
        while value.dtype.kind == "V" or value.dtype.hasobject:  # a struct: its first field
            value = value.ravel()[0]
            value = value[0] if isinstance(value, np.void) else value
        return [float(number) for number in np.ravel(value)]
    except StopIteration:
        raise DataError(f"{path} has none of {', '.join(names)}.") from None
    except (OSError, ValueError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error


def write_frames(frames: Iterator[RgbdFrame], out: Path) -> dict[str, int]:
    """Write the frames; how many of each split."""
    counts: dict[str, int] = {}
    for split, name, image, label, depth in frames:
        if image.shape[:2] != depth.shape or (label is not None and label.shape != depth.shape):
            raise DataError(f"{split} {name}: the image is {image.shape}, the depth map {depth.shape}.")
        maps = {"images": np.ascontiguousarray(image[..., ::-1])} | ({} if label is None else {"masks": label})
        for folder, content in maps.items():
            path = out / split / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not cv2.imwrite(str(path), content):
                raise SystemExit(f"{path} cannot be written. Check the disk.")
        (out / split / "depths").mkdir(exist_ok=True)
        np.save(out / split / "depths" / f"{name}.npy", depth)
        counts[split] = counts.get(split, 0) + 1
    return counts


def open_frames(options: argparse.Namespace, work: Path) -> tuple[Iterator[RgbdFrame], bool]:
    """The frames, and whether they have labels. ``work`` is a folder to unpack an archive in."""
    source: Path = options.source
    if source.suffix == ".mat":
        table = build_id_table(options.mapping, options.classes) if options.mapping else None
        training = {int(n) for n in read_numbers(options.split, ("trainNdxs",))} if options.split else None
        return read_matlab(source, table, training), table is not None
    if source.is_file():
        extract_archive(source, work / "unpacked")
        source = work / "unpacked"
    found = sorted(path.parents[1] for path in source.glob("**/train/image"))
    if not found:
        raise SystemExit(f"No train/image under {source}. Expected {{train,val}}/{{image,label,depth}}/0.npy.")
    return read_arrays(found[0]), True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FROM")
    parser.add_argument("out", type=Path)
    parser.add_argument("--classes", type=int, choices=CLASSES, default=13)
    parser.add_argument("--mapping", type=Path, nargs="*", default=[])
    parser.add_argument("--split", type=Path)
    options = parser.parse_args()
    out: Path = options.out
    if out.exists() and any(out.iterdir()):
        raise SystemExit(f"{out} is not empty. Nothing is overwritten: name another folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        try:
            frames, labelled = open_frames(options, Path(work))
            counts = write_frames(frames, Path(work) / "out")
        except DataError as error:
            raise SystemExit(str(error)) from None
        if not counts:
            raise SystemExit(f"{options.source} holds no frame.")
        if labelled:
            (Path(work) / "out/classes.txt").write_text("\n".join(CLASSES[options.classes]) + "\n")
        (Path(work) / "out").replace(out)
    print(", ".join(f"{split}: {count} frames" for split, count in counts.items()))


if __name__ == "__main__":
    main()
