"""DAPE, SeeSR's degradation-aware prompt extractor: RAM with a LoRA; tags and image tokens of an LR image."""
