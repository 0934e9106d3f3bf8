"""The paper's public backbones: SD3.5 with DiT4SR (`quality`) and SD2.1 with SeeSR (`fidelity`)."""
