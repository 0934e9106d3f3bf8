"""SeeSR's denoiser: the UNet of Stable Diffusion 2 and a ControlNet, both with attention to image tokens."""
