"""Running things: the training loop, checkpoints, metrics, the mesh and its processes. Knows arrays, not models."""
