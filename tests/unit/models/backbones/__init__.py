"""Tests of the public backbones, on tiny random checkpoints."""
