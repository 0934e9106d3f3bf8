"""The profile `quality` at full size with random weights: numerics, speed, memory and what a training step costs."""
