"""Launch file: ros2 launch perception_ros perception.launch.py model:=/path/model.onnx image:=/front/image_raw."""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare


def generate_launch_description() -> LaunchDescription:
    """Return the node with its launch arguments."""
    settings = PathJoinSubstitution([FindPackageShare("perception_ros"), "config", "perception.yaml"])
    return LaunchDescription(
        [
            DeclareLaunchArgument("model", description="ONNX file written by `perception export`"),
            DeclareLaunchArgument("image", default_value="/camera/image_raw"),
            DeclareLaunchArgument("camera_info", default_value="/camera/camera_info"),
            DeclareLaunchArgument("namespace", default_value="camera"),
            DeclareLaunchArgument("parameters", default_value=settings),
            Node(
                package="perception_ros",
                executable="perception",
                name="perception",
                namespace=LaunchConfiguration("namespace"),
                parameters=[LaunchConfiguration("parameters"), {"model": LaunchConfiguration("model")}],
                remappings=[
                    ("image", LaunchConfiguration("image")),
                    ("camera_info", LaunchConfiguration("camera_info")),
                ],
            ),
        ]
    )
