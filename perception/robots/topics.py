"""Selects the image topics of a recording, and names the topics of their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from perception.files.safe_names import escape_unprintable
from perception.robots.images import CAMERA_INFO, COMPRESSED_IMAGE, IMAGE
from perception.robots.recorded_messages import Channel
from perception.types import PerceptionError

FOXGLOVE_TYPES = {"RawImage": IMAGE, "CompressedImage": COMPRESSED_IMAGE, "CameraCalibration": CAMERA_INFO}
ROS_TYPES = {
    **{kind: kind for kind in (IMAGE, COMPRESSED_IMAGE, CAMERA_INFO)},
    **{f"foxglove.{name}": kind for name, kind in FOXGLOVE_TYPES.items()},
    **{f"foxglove_msgs/msg/{name}": kind for name, kind in FOXGLOVE_TYPES.items()},
}
"""Channel type -> ROS type to which its messages are converted."""
VIDEO_TYPES = frozenset(("FFMPEGPacket", "CompressedVideo", "H264Packet", "H265Packet", "Packet"))
NON_IMAGE_WORDS = frozenset(("depth", "label", "labels", "mask", "disparity", "confidence", "compresseddepth"))
"""Name parts of topics that are not camera images, although their encoding may be that of a gray image."""


def is_supported(channel: Channel) -> bool:
    """Return whether its messages are images or camera calibrations in a supported encoding."""
    encodings = ("protobuf", "json") if channel.type.startswith("foxglove.") else ("cdr", "ros1")
    return channel.type in ROS_TYPES and channel.encoding in encodings


def is_image(channel: Channel) -> bool:
    """Return whether its messages are images in a supported encoding."""
    return is_supported(channel) and ROS_TYPES[channel.type] != CAMERA_INFO


def uncompressed_topic(topic: str) -> str:
    """Return the raw topic of a compressed one: "/front/image_raw/compressed" -> "/front/image_raw"."""
    return topic.removesuffix("/compressed")


def namespace(topic: str) -> str:
    """Return the namespace of an image topic: "/front/image_raw/compressed" -> "/front"."""
    return uncompressed_topic(topic).rpartition("/")[0]


def select_topics(
    channels: Collection[Channel], requested: Sequence[str] | None, where: object
) -> tuple[list[str], dict[str, str]]:
    """Return the image topics to read, and other image topic -> why it is skipped.

    Args:
        channels: all channels of the recording.
        requested: topics; None = all except depth and label images, and compressed copies of another topic.
        where: name of the recording in error messages.

    Raises:
        PerceptionError: there is no image topic, or a requested one does not exist.
    """
    counts = Counter[str]()
    for channel in channels:
        counts[channel.topic] += channel.count if is_image(channel) else 0
    images = sorted({channel.topic for channel in channels if is_image(channel)})
    packed = {channel.topic for channel in channels if ROS_TYPES.get(channel.type) == COMPRESSED_IMAGE}
    left_out = {c.topic: why for c in channels if c.topic not in images and (why := _unsupported_reason(c))}
    if missing := sorted(set(requested or ()) - set(images)):
        known = ", ".join(map(escape_unprintable, images)) or "none"
        why = f" ({left_out[missing[0]]})" if missing[0] in left_out else ""
        raise PerceptionError(f"{where} has no image topic {escape_unprintable(missing[0])}{why}. It has: {known}.")
    if requested:
        return sorted(set(requested)), {}
    for topic in images:
        if NON_IMAGE_WORDS & set(topic.lower().replace("_", "/").split("/")):
            left_out[topic] = "not camera images, judging by its name; use --topics to read it"
        elif topic in packed and counts[raw := topic.rpartition("/")[0]]:
            few = 2 * counts[raw] < counts[topic]
            worse, better = (raw, topic) if few else (topic, raw)
            left_out[worse] = (
                f"{counts[worse]} images, but {counts[better]} of the same camera are in {better}; "
                "use --topics to read it"
            )
    topics = [topic for topic in images if topic not in left_out]
    if not topics:
        there = sorted({channel.topic for channel in channels})
        told = ", ".join(escape_unprintable(t) + (f" ({left_out[t]})" if t in left_out else "") for t in there)
        raise PerceptionError(f"{where} has no image topic. It has: {told or 'none'}.")
    return topics, left_out


def _unsupported_reason(channel: Channel) -> str:
    """Why an image-related topic is not supported; "" for other topics."""
    name = channel.type.replace(".", "/").rpartition("/")[2]
    if name in VIDEO_TYPES:
        return (
            f"{name}: video packets, not images. Republish it as images during playback (`ros2 run "
            "image_transport republish`) and record them, or decode it to an mp4 file"
        )
    if channel.type in ROS_TYPES and not is_supported(channel):
        return f"{name} in the encoding '{escape_unprintable(channel.encoding)}', which is not supported"
    return ""


def assign_prefixes(topics: Iterable[str]) -> dict[str, str]:
    """Return image topic -> prefix of its results.

    The prefix of "/front/image_raw" is "/front/perception", or "/front/image_raw/perception" if "/front" has another
    image topic.
    """
    found = {topic: namespace(topic) for topic in topics}
    while shared := [t for t, n in Counter(found.values()).items() if n > 1]:
        found |= {topic: topic for topic, place in found.items() if place in shared}
    return {
        topic: "/".join(["", *(part for part in place.split("/") if part), "perception"])
        for topic, place in found.items()
    }


def find_info_topic(topic: str, infos: Collection[str]) -> str | None:
    """Return the CameraInfo topic of an image topic: its neighbor ``camera_info``, or the only one in its namespace.

    librealsense records ``Color_0/image/data`` and ``Color_0/info/camera_info``.
    """
    for place in (namespace(topic), topic.rpartition("/")[0], topic.removesuffix("/image/data") + "/info"):
        if f"{place}/camera_info" in infos:
            return f"{place}/camera_info"
    beside = [info for info in infos if info.rpartition("/")[0] == namespace(topic)]
    return beside[0] if len(beside) == 1 else None
