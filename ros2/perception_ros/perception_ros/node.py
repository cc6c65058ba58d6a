"""ROS 2 node: subscribes to a camera and publishes results with the stamp and frame_id of their image."""

import dataclasses

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from perception.robots.camera_info import is_rectified, parse_camera_info
from perception.robots.images import COMPRESSED_IMAGE, IMAGE, decode_image_message
from perception.robots.messages import ERROR, OK, WARN, MessageHeader, make_diagnostics, result_to_messages
from perception.runtime.predictor import Predictor
from perception.runtime.sources import Frame
from perception.video.image_monitor import ImageMonitor
from perception_ros.convert import ros_class, to_ros
from perception_ros.worker import LatestItemWorker

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL, reliability=ReliabilityPolicy.RELIABLE)
"""QoS of label_info, which does not change: late subscribers receive it too."""
DEFAULT_FOCAL_NOTE = "Metres assume the default focal length."


class PerceptionNode(Node):
    """Subscribes to ``image`` and ``camera_info`` (sensor-data QoS) and publishes ``perception/...``."""

    def __init__(self) -> None:
        super().__init__("perception")
        setting = self._declare
        tasks, providers = ([name for name in setting(key, [""]) if name] for key in ("tasks", "providers"))
        self._predictor = Predictor(
            setting("model", ""),
            threads=setting("threads", 0) or None,
            providers=providers or None,
            tasks=tasks or None,
        )
        self._message_kind = COMPRESSED_IMAGE if setting("compressed", False) else IMAGE
        self._point_stride, self._deadline = setting("point_step", 4), setting("deadline", 0.2)
        self._max_silence = setting("stale", 1.0)
        self._camera_info, self._camera_problem = None, f"no camera_info. {DEFAULT_FOCAL_NOTE}"
        self._deadline_misses, self._last_image_time, self._problem = 0, self._now(), ""
        self._monitor, self._flags = ImageMonitor(), ()
        self._previous_counts: dict[str, int] = {}
        self._result_publishers = {}
        self._worker = LatestItemWorker(self._process_image, self._on_error)
        message = CompressedImage if self._message_kind == COMPRESSED_IMAGE else Image
        self.create_subscription(message, "image", self._receive_image, qos_profile_sensor_data)
        self.create_subscription(CameraInfo, "camera_info", self._receive_camera_info, qos_profile_sensor_data)
        self._rectified = is_rectified(self.resolve_topic_name("image"))
        self._diagnostics_publisher = self.create_publisher(
            ros_class("diagnostic_msgs/msg/DiagnosticArray"), "/diagnostics", 1
        )
        self.create_timer(1.0, self._publish_diagnostics)

    def _declare(self, name, default):
        return self.declare_parameter(name, default).value

    def _receive_camera_info(self, message) -> None:
        self._camera_info = message

    def _receive_image(self, message) -> None:
        self._last_image_time = self._now()
        self._worker.put(message)

    def _process_image(self, message) -> None:
        time = message.header.stamp
        stamp = MessageHeader(time.sec * 10**9 + time.nanosec, message.header.frame_id)
        image = decode_image_message(message, self._message_kind, f"image at {stamp.nanoseconds / 1e9:.3f}")
        camera = None
        if self._camera_info is not None:
            camera, trouble = parse_camera_info(self._camera_info, image.shape[:2], self._rectified)
            self._camera_problem = trouble if camera else f"{trouble} {DEFAULT_FOCAL_NOTE}"
        result = self._predictor(image, camera)
        prediction = self._monitor(Frame(image, stamp.nanoseconds / 1e9), result.prediction)
        result = dataclasses.replace(result, prediction=prediction)
        for topic, found in result_to_messages(result, stamp, self._point_stride).items():
            self._get_publisher(topic, found.type).publish(to_ros(found))
        late = self._now() - stamp.nanoseconds / 1e9
        self._deadline_misses += bool(self._deadline) and late > self._deadline
        self._problem, self._flags = "", result.flags

    def _get_publisher(self, topic: str, kind: str):
        if topic not in self._result_publishers:
            quality = LATCHED if topic == "label_info" else qos_profile_sensor_data
            self._result_publishers[topic] = self.create_publisher(ros_class(kind), f"perception/{topic}", quality)
        return self._result_publishers[topic]

    def _on_error(self, error: Exception) -> None:
        self._problem = str(error)
        self.get_logger().error(self._problem, throttle_duration_sec=5.0)

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds / 1e9

    def _publish_diagnostics(self) -> None:
        """Publish the counts and latencies, once per second."""
        now, queue = self._now(), self._worker
        counts = {
            "received": queue.received,
            "processed": queue.processed,
            "dropped": queue.dropped,
            "failed": queue.failed,
        }
        counts["deadlines missed"] = self._deadline_misses
        news = {name: count - self._previous_counts.get(name, 0) for name, count in counts.items()}
        self._previous_counts = counts
        age = now - self._last_image_time
        if self._problem or age > self._max_silence:
            level, text = ERROR, self._problem or f"no image for {age:.1f} s"
        elif self._flags:
            level, text = ERROR, "; ".join(self._flags)
        elif news["dropped"] or news["deadlines missed"]:
            level, text = WARN, f"{news['dropped']} images dropped, {news['deadlines missed']} late"
        elif self._camera_problem:
            level, text = WARN, self._camera_problem
        else:
            level, text = OK, "running"
        low, high = queue.latency_percentiles()
        values = {**counts, "latency p50 s": f"{low:.4f}", "latency p99 s": f"{high:.4f}"}
        message = make_diagnostics(
            self.get_fully_qualified_name(), level, text, values, self.get_clock().now().nanoseconds
        )
        self._diagnostics_publisher.publish(to_ros(message))

    def destroy_node(self) -> None:
        """Stop the worker and destroy the node."""
        self._worker.close()
        super().destroy_node()


def main() -> None:
    """Run the node until it is interrupted."""
    rclpy.init()
    node = PerceptionNode()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
