"""Robot logs without ROS: MCAP files, ROS 1 bags, ROS 2 bags."""
