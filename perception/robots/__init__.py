"""Results as ROS 2 messages, and bags read and written without ROS (extra ``robots``: rosbags)."""
