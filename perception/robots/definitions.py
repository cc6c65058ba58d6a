"""Message definitions for writing (vision_msgs 4, ROS 2 Humble and later) and reading (foxglove_msgs)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perception.types import PerceptionError

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore

VISION_MSGS = {
    "Point2D": "float64 x\nfloat64 y\n",
    "Pose2D": "vision_msgs/Point2D position\nfloat64 theta\n",
    "BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y\n",
    "ObjectHypothesis": "string class_id\nfloat64 score\n",
    "ObjectHypothesisWithPose": "vision_msgs/ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n",
    "Detection2D": "std_msgs/Header header\nvision_msgs/ObjectHypothesisWithPose[] results\n"
    "vision_msgs/BoundingBox2D bbox\nstring id\n",
    "Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections\n",
    "Classification": "std_msgs/Header header\nvision_msgs/ObjectHypothesis[] results\n",
    "VisionClass": "uint16 class_id\nstring class_name\n",
    "LabelInfo": "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n",
}
"""Name -> fields, as defined by the maintainers (Apache-2.0); a test compares their ROS type hashes."""

FOXGLOVE_MSGS = {
    "RawImage": "builtin_interfaces/Time timestamp\nstring frame_id\nuint32 width\nuint32 height\nstring encoding\n"
    "uint32 step\nuint8[] data\n",
    "CompressedImage": "builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n",
    "CameraCalibration": "builtin_interfaces/Time timestamp\nstring frame_id\nuint32 width\nuint32 height\n"
    "string distortion_model\nfloat64[] d\nfloat64[9] k\nfloat64[9] r\nfloat64[12] p\n",
}
"""Name -> fields of the messages that are read (MIT)."""


def make_typestore() -> Typestore:
    """Return a rosbags type store with all standard ROS 2 messages, `VISION_MSGS` and `FOXGLOVE_MSGS`.

    Raises PerceptionError if rosbags is not installed.
    """
    try:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ModuleNotFoundError as error:
        raise PerceptionError(
            "Reading and writing bags needs the package rosbags. Install it: pip install 'dense-perception[robots]'"
        ) from error
    store = get_typestore(Stores.ROS2_HUMBLE)
    types: dict[str, Any] = {}
    for name, text in VISION_MSGS.items():
        types |= get_types_from_msg(text, f"vision_msgs/msg/{name}")
    for name, text in FOXGLOVE_MSGS.items():
        types |= get_types_from_msg(text, f"foxglove_msgs/msg/{name}")
    store.register(types)
    return store
