"""Guidance signals read from the LR image: segmentation, depth, edge, DINO features, text."""
