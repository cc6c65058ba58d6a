"""Draw which task attends to which: python tools/draw_attention.py RUN IMAGE OUT.png [X Y], of a run with fusion."""

import sys
from pathlib import Path

import cv2
import torch

from perception.files.images import read_image
from perception.ops.draw_attention import draw_attention
from perception.ops.image import compute_letterbox, warp_image
from perception.runs import open_run
from perception.types import ConfigError


def main(run: str, image_path: str, out: str, x: str = "0.5", y: str = "0.5") -> None:
    """x, y: the location that asks, as fractions of the width and height of the network's input."""
    recipe, model = open_run(run)
    image = read_image(Path(image_path))
    image = warp_image(image, compute_letterbox(image.shape[:2], recipe.data.size))
    with torch.inference_mode():
        levels = model.compute_attention(torch.from_numpy(image).permute(2, 0, 1)[None])
    if not levels:
        raise ConfigError(f"{run} has no fusion: nothing attends to anything. Train with model.fusion.name=attention.")
    stride, found = max(levels.items())
    column, row = (
        min(int(float(at) * side), side - 1)
        for at, side in ((x, found.gather_weights.shape[-1]), (y, found.gather_weights.shape[-2]))
    )
    maps = torch.stack([found.weights_at(name, row, column)[0] for name in found.tasks])
    point = (column * stride + stride // 2, row * stride + stride // 2)
    drawn = draw_attention(image, found.tasks, found.mean_weights()[0].numpy(), maps.numpy(), point)
    cv2.imwrite(out, drawn[..., ::-1])


if __name__ == "__main__":
    main(*sys.argv[1:])
