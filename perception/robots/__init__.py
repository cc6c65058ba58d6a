"""Results as ROS 2 messages; reading and writing of bags without ROS (extra ``robots``: rosbags)."""
