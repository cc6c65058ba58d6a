"""Made street data: perspective road scenes with exact labels for all four tasks on the same picture.

`render` makes one picture, `write` a folder that the COCO and Cityscapes readers read, `frames` and `write_video` a
drive with object identities. Nothing is downloaded; a picture is a function of its seed and index.
"""

from perception.synthetic.canvas import CLASSES, LABELS, SCENES, StreetPicture
from perception.synthetic.render import render
from perception.synthetic.video import frames, write_video
from perception.synthetic.write import write

__all__ = ["CLASSES", "LABELS", "SCENES", "StreetPicture", "frames", "render", "write", "write_video"]
