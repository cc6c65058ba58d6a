"""The node: pictures of a camera in, results of the network out, each with the picture's own stamp and frame_id."""

import dataclasses

import rclpy
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from perception.robots.camera_info import is_rectified, lens
from perception.robots.images import COMPRESSED, IMAGE, decode
from perception.robots.messages import ERROR, OK, WARN, Stamp, all_messages, diagnostics
from perception.runtime.predictor import Perceiver
from perception.runtime.sources import Shot
from perception.video.image_monitor import Monitor
from perception_ros.convert import ros_class, to_ros
from perception_ros.newest import NewestOnly

LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL, reliability=ReliabilityPolicy.RELIABLE)
"""Of label_info, which does not change: who comes later gets it too."""
DEFAULT = "Metres assume the default focal length."


class PerceptionNode(Node):
    """Subscribes ``image`` and ``camera_info`` with sensor-data quality of service, publishes ``perception/...``."""

    def __init__(self) -> None:
        super().__init__("perception")
        setting = self._declare
        tasks, providers = ([name for name in setting(key, [""]) if name] for key in ("tasks", "providers"))
        self._perceiver = Perceiver(
            setting("model", ""),
            threads=setting("threads", 0) or None,
            providers=providers or None,
            tasks=tasks or None,
        )
        self._kind = COMPRESSED if setting("compressed", False) else IMAGE
        self._point_step, self._deadline = setting("point_step", 4), setting("deadline", 0.2)
        self._stale = setting("stale", 1.0)
        self._info, self._lens_trouble = None, f"no camera_info. {DEFAULT}"
        self._missed, self._last, self._trouble = 0, self._now(), ""
        self._monitor, self._flags = Monitor(), ()
        self._before: dict[str, int] = {}
        self._outputs = {}
        self._queue = NewestOnly(self._perceive, self._fail)
        message = CompressedImage if self._kind == COMPRESSED else Image
        self.create_subscription(message, "image", self._take, qos_profile_sensor_data)
        self.create_subscription(CameraInfo, "camera_info", self._take_info, qos_profile_sensor_data)
        self._rectified = is_rectified(self.resolve_topic_name("image"))
        self._diagnostics = self.create_publisher(ros_class("diagnostic_msgs/msg/DiagnosticArray"), "/diagnostics", 1)
        self.create_timer(1.0, self._diagnose)

    def _declare(self, name, default):
        return self.declare_parameter(name, default).value

    def _take_info(self, message) -> None:
        self._info = message

    def _take(self, message) -> None:
        self._last = self._now()
        self._queue.put(message)

    def _perceive(self, message) -> None:
        time = message.header.stamp
        stamp = Stamp(time.sec * 10**9 + time.nanosec, message.header.frame_id)
        image = decode(message, self._kind, f"picture at {stamp.nanoseconds / 1e9:.3f}")
        camera = None
        if self._info is not None:
            camera, trouble = lens(self._info, image.shape[:2], self._rectified)
            self._lens_trouble = trouble if camera else f"{trouble} {DEFAULT}"
        result = self._perceiver(image, camera)
        prediction = self._monitor(Shot(image, stamp.nanoseconds / 1e9), result.prediction)
        result = dataclasses.replace(result, prediction=prediction)
        for topic, found in all_messages(result, stamp, self._point_step).items():
            self._publisher(topic, found.type).publish(to_ros(found))
        late = self._now() - stamp.nanoseconds / 1e9
        self._missed += bool(self._deadline) and late > self._deadline
        self._trouble, self._flags = "", result.flags

    def _publisher(self, topic: str, kind: str):
        if topic not in self._outputs:
            quality = LATCHED if topic == "label_info" else qos_profile_sensor_data
            self._outputs[topic] = self.create_publisher(ros_class(kind), f"perception/{topic}", quality)
        return self._outputs[topic]

    def _fail(self, error: Exception) -> None:
        self._trouble = str(error)
        self.get_logger().error(self._trouble, throttle_duration_sec=5.0)

    def _now(self) -> float:
        return self.get_clock().now().nanoseconds / 1e9

    def _diagnose(self) -> None:
        """Once a second: what was received, done, dropped and late since the last time, and how long it took."""
        now, queue = self._now(), self._queue
        counts = {"received": queue.received, "processed": queue.done, "dropped": queue.dropped, "failed": queue.errors}
        counts["deadlines missed"] = self._missed
        news = {name: count - self._before.get(name, 0) for name, count in counts.items()}
        self._before = counts
        age = now - self._last
        if self._trouble or age > self._stale:
            level, text = ERROR, self._trouble or f"no picture for {age:.1f} s"
        elif self._flags:
            level, text = ERROR, "; ".join(self._flags)
        elif news["dropped"] or news["deadlines missed"]:
            level, text = WARN, f"{news['dropped']} pictures dropped, {news['deadlines missed']} late"
        elif self._lens_trouble:
            level, text = WARN, self._lens_trouble
        else:
            level, text = OK, "running"
        low, high = queue.latencies()
        values = {**counts, "latency p50 s": f"{low:.4f}", "latency p99 s": f"{high:.4f}"}
        message = diagnostics(self.get_fully_qualified_name(), level, text, values, self.get_clock().now().nanoseconds)
        self._diagnostics.publish(to_ros(message))

    def destroy_node(self) -> None:
        self._queue.close()
        super().destroy_node()


def main() -> None:
    rclpy.init()
    node = PerceptionNode()
    try:
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
