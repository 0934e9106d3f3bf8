"""The diffusion transformer and its flow-matching sampler."""
