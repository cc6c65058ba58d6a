"""Synthetic street data: perspective road scenes with exact labels for all four tasks on the same image.

`render_image` renders one image. `write_dataset` writes a folder for the COCO and Cityscapes readers. `render_frames`
and `write_video` render a video with object identities. Nothing is downloaded. An image depends only on its seed and
index.
"""

from perception.synthetic.dataset_writer import write_dataset
from perception.synthetic.render import render_image
from perception.synthetic.street_image import LABEL_NAMES, OBJECT_CLASSES, SCENE_CLASSES, StreetImage
from perception.synthetic.video import render_frames, write_video

__all__ = [
    "LABEL_NAMES",
    "OBJECT_CLASSES",
    "SCENE_CLASSES",
    "StreetImage",
    "render_frames",
    "render_image",
    "write_dataset",
    "write_video",
]
