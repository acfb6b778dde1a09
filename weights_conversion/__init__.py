"""Published PyTorch checkpoints to this project's weights, without PyTorch."""
