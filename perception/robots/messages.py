"""Converts results to ROS 2 messages, following the conventions of vision_msgs and sensor_msgs. No ROS, no torch.

A message is a type with nested fields. Two small adapters convert it, so that both publish the same content:
`bag_writer.to_rosbags` for recordings, and the node in ``ros2/`` for a running system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.runtime.result import Result
from perception.types import Camera

UNLABELED = 255
"""Class id of pixels that are not valid in a label image (reserved by vision_msgs/LabelInfo)."""

OK, WARN, ERROR = 0, 1, 2
"""Levels of diagnostic_msgs/DiagnosticStatus."""


@dataclass(frozen=True, slots=True)
class Message:
    """A ROS message, independent of the transport.

    Attributes:
        type: like "sensor_msgs/msg/Image".
        fields: name -> number, text, array, `Message`, or a list of these.
    """

    type: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class MessageHeader:
    """The header of the source image, copied unchanged to every message of its result.

    Attributes:
        nanoseconds: time since the epoch.
        frame_id: name of the camera's optical frame (x right, y down, z forward).
    """

    nanoseconds: int
    frame_id: str

    def to_message(self) -> Message:
        """Return it as std_msgs/Header."""
        seconds, rest = divmod(self.nanoseconds, 10**9)
        time = Message("builtin_interfaces/msg/Time", {"sec": seconds, "nanosec": rest})
        return Message("std_msgs/msg/Header", {"stamp": time, "frame_id": self.frame_id})


def result_to_messages(result: Result, header: MessageHeader, point_stride: int = 4) -> dict[str, Message]:
    """Return relative topic -> message for all outputs of a result.

    The point cloud uses every ``point_stride``-th row and column; 0 = no cloud.
    """
    found: dict[str, Message] = {}
    if result.boxes is not None:
        found["detections"] = make_detections(result, header)
    if result.segmentation_mask is not None:
        found["label_image"] = make_image(result.segmentation_mask, "mono8", header)
        found["label_info"] = make_label_info(result, header)
    if result.depth is not None:
        found["depth/image_rect"] = make_image(result.depth, "32FC1", header)
        found["depth/camera_info"] = make_camera_info(result.effective_camera(), result.size, header)
        if point_stride:
            found["points"] = make_point_cloud(result, header, point_stride)
    if result.scene_probabilities is not None:
        found["scene"] = make_classification(result, header)
    return found


def make_detections(result: Result, header: MessageHeader) -> Message:
    """Make a vision_msgs/Detection2DArray: boxes above the threshold, best first; ``id`` is the track id, "" = none.

    The pose of a hypothesis is the 3D position of the box center at the box's distance, in metres in the optical
    frame. If the distance is unknown, the first element of its covariance is -1.
    """
    boxes, scores, labels = result.boxes, result.scores, result.labels
    assert boxes is not None
    assert scores is not None
    assert labels is not None
    distances, tracks = result.distances, result.tracks
    header_message, lens = header.to_message(), result.effective_camera() if distances is not None else None
    items = []
    for i, (x1, y1, x2, y2) in enumerate(boxes.astype(float).tolist()):
        center = (x1 + x2) / 2, (y1 + y2) / 2
        hypothesis = Message("vision_msgs/msg/ObjectHypothesis", {"class_id": labels[i], "score": float(scores[i])})
        metres = float("nan") if distances is None else float(distances[i])
        fields = {"hypothesis": hypothesis, "pose": _make_pose(center, metres, lens)}
        box = {"center": _make_center(*center), "size_x": x2 - x1, "size_y": y2 - y1}
        items.append(
            Message(
                "vision_msgs/msg/Detection2D",
                {
                    "header": header_message,
                    "results": [Message("vision_msgs/msg/ObjectHypothesisWithPose", fields)],
                    "bbox": Message("vision_msgs/msg/BoundingBox2D", box),
                    "id": "" if tracks is None or tracks[i] < 0 else str(int(tracks[i])),
                },
            )
        )
    return Message("vision_msgs/msg/Detection2DArray", {"header": header_message, "detections": items})


def _make_center(x: float, y: float) -> Message:
    position = Message("vision_msgs/msg/Point2D", {"x": x, "y": y})
    return Message("vision_msgs/msg/Pose2D", {"position": position, "theta": 0.0})


def _make_pose(center: tuple[float, float], distance: float, camera: Camera | None) -> Message:
    covariance = np.zeros(36)
    x = y = z = 0.0
    if camera is not None and np.isfinite(distance):
        x, y, z = (
            (center[0] - camera.cx) / camera.fx * distance,
            (center[1] - camera.cy) / camera.fy * distance,
            distance,
        )
    else:
        covariance[0] = -1.0
    pose = {
        "position": Message("geometry_msgs/msg/Point", {"x": x, "y": y, "z": z}),
        "orientation": Message("geometry_msgs/msg/Quaternion", {"x": 0.0, "y": 0.0, "z": 0.0, "w": 1.0}),
    }
    return Message(
        "geometry_msgs/msg/PoseWithCovariance",
        {"pose": Message("geometry_msgs/msg/Pose", pose), "covariance": covariance},
    )


def make_image(values: NDArray, encoding: str, header: MessageHeader) -> Message:
    """Make a sensor_msgs/Image of a [H, W] or [H, W, 3] array.

    Encodings: "mono8" for class ids, "32FC1" for metres with NaN = unknown (REP 118), "rgb8" for color images.
    """
    kind = np.dtype("<f4") if encoding == "32FC1" else np.dtype(np.uint8)
    plain = np.ascontiguousarray(values, kind)
    fields = {
        "header": header.to_message(),
        "height": plain.shape[0],
        "width": plain.shape[1],
        "encoding": encoding,
        "is_bigendian": 0,
        "step": plain.strides[0],
        "data": plain.reshape(-1).view(np.uint8),
    }
    return Message("sensor_msgs/msg/Image", fields)


def make_label_info(result: Result, header: MessageHeader) -> Message:
    """Make a vision_msgs/LabelInfo: the class names of the label image's ids; 255 = not valid."""
    names = [*enumerate(result.segmentation_classes or ()), (UNLABELED, "UNLABELED")]
    classes = [Message("vision_msgs/msg/VisionClass", {"class_id": id, "class_name": name}) for id, name in names]
    return Message("vision_msgs/msg/LabelInfo", {"header": header.to_message(), "class_map": classes, "threshold": 0.0})


def make_camera_info(camera: Camera, size: tuple[int, int], header: MessageHeader) -> Message:
    """Make a sensor_msgs/CameraInfo of a pinhole camera without distortion. ROS has pixel centers at integers."""
    k = np.array([camera.fx, 0, camera.cx - 0.5, 0, camera.fy, camera.cy - 0.5, 0, 0, 1.0])
    region = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False}
    fields = {
        "header": header.to_message(),
        "height": size[0],
        "width": size[1],
        "distortion_model": "plumb_bob",
        "d": np.zeros(5),
        "k": k,
        "r": np.eye(3).ravel(),
        "p": np.insert(k, [3, 6, 9], 0.0),
        "binning_x": 0,
        "binning_y": 0,
        "roi": Message("sensor_msgs/msg/RegionOfInterest", region),
    }
    return Message("sensor_msgs/msg/CameraInfo", fields)


def make_point_cloud(result: Result, header: MessageHeader, stride: int) -> Message:
    """Make a sensor_msgs/PointCloud2 of x, y, z (metres, optical frame) and rgb, as RViz and Foxglove expect."""
    cloud = result.point_cloud(stride)
    record = np.zeros(len(cloud.points), np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("rgb", "<u4")]))
    for i, axis in enumerate("xyz"):
        record[axis] = cloud.points[:, i]
    red, green, blue = cloud.colors.astype(np.uint32).T
    record["rgb"] = red << 16 | green << 8 | blue
    float32 = 7
    layout = [
        Message("sensor_msgs/msg/PointField", {"name": name, "offset": 4 * i, "datatype": float32, "count": 1})
        for i, name in enumerate(("x", "y", "z", "rgb"))
    ]
    fields = {
        "header": header.to_message(),
        "height": 1,
        "width": len(record),
        "fields": layout,
        "is_bigendian": False,
        "point_step": record.itemsize,
        "row_step": record.nbytes,
        "data": record.view(np.uint8),
        "is_dense": True,
    }
    return Message("sensor_msgs/msg/PointCloud2", fields)


def make_classification(result: Result, header: MessageHeader) -> Message:
    """Make a vision_msgs/Classification: every scene class with its probability, the most probable first."""
    kinds = [
        Message("vision_msgs/msg/ObjectHypothesis", {"class_id": name, "score": float(score)})
        for name, score in (result.scene_probabilities or {}).items()
    ]
    return Message("vision_msgs/msg/Classification", {"header": header.to_message(), "results": kinds})


def make_flag_diagnostics(result: Result, name: str, header: MessageHeader) -> Message | None:
    """Make a diagnostic_msgs/DiagnosticArray of a result's flags; None if it has none.

    The level is ERROR if the result is not valid, else WARN.
    """
    if not result.flags:
        return None
    level = WARN if result.valid else ERROR
    return make_diagnostics(name, level, "; ".join(result.flags), {"valid": result.valid}, header.nanoseconds)


def make_diagnostics(name: str, level: int, text: str, values: dict[str, Any], nanoseconds: int) -> Message:
    """Make a diagnostic_msgs/DiagnosticArray with one status of level `OK`, `WARN` or `ERROR`; values become text."""
    pairs = [
        Message("diagnostic_msgs/msg/KeyValue", {"key": key, "value": str(value)}) for key, value in values.items()
    ]
    fields = {"level": level, "name": name, "message": text, "hardware_id": "", "values": pairs}
    status = Message("diagnostic_msgs/msg/DiagnosticStatus", fields)
    return Message(
        "diagnostic_msgs/msg/DiagnosticArray",
        {"header": MessageHeader(nanoseconds, "").to_message(), "status": [status]},
    )
