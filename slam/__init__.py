"""The SLAM system: an immutable map, a pure step, and the runner at its rim."""
