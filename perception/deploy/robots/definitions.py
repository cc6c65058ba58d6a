"""The definitions of vision_msgs 4 (ROS 2 Humble and later), which recordings carry with them."""

from __future__ import annotations

from typing import Any

from perception.types import PerceptionError

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
"""Name -> fields, as its maintainers define them (Apache-2.0); a test compares the hashes that ROS computes of them."""


def typestore() -> Any:
    """All standard messages of ROS 2 and `VISION_MSGS`. Raises PerceptionError where rosbags is not installed."""
    try:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ModuleNotFoundError as error:
        raise PerceptionError(
            "Bags need the package rosbags. Install it: pip install 'dense-perception[robots]'"
        ) from error
    store = get_typestore(Stores.ROS2_HUMBLE)
    types: dict[str, Any] = {}
    for name, text in VISION_MSGS.items():
        types |= get_types_from_msg(text, f"vision_msgs/msg/{name}")
    store.register(types)
    return store
