"""ROS 2 node of the package perception."""
