"""Made street data: perspective road scenes with exact labels for all four tasks on the same image.

`render_image` makes one image, `write` a folder that the COCO and Cityscapes readers read, `frames` and `write_video` a
drive with object identities. Nothing is downloaded; an image is a function of its seed and index.
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
