"""Files, videos and folders: everything of the SLAM that touches the outside world."""
