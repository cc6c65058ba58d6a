"""Package of the ROS 2 node."""

from setuptools import setup

setup(
    name="perception_ros",
    version="0.1.0",
    packages=["perception_ros"],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/perception_ros"]),
        ("share/perception_ros", ["package.xml"]),
        ("share/perception_ros/launch", ["launch/perception.launch.py"]),
        ("share/perception_ros/config", ["config/perception.yaml"]),
    ],
    install_requires=["setuptools", "dense-perception"],
    license="Apache-2.0",
    entry_points={"console_scripts": ["perception = perception_ros.node:main"]},
)
