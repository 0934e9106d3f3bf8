"""Time and memory of the VAE's tiles at random weights."""

import time
from collections.abc import Generator

import torch

from evaluation.full_size.record import Deadline, Row
from evaluation.full_size.setting import Setting, watch_peak
from evaluation.speed import synchronise
from models.backbones.memory import GIB, Placement, TileSizes, needed_bytes
from models.backbones.quality import vae_dtype
from models.backbones.sizes import VAE_SCALE
from models.backbones.stock import stock_vae
from models.backbones.vae import TiledVae

ROUNDS = 3


def random_vae(setting: Setting) -> TiledVae:
    """In the precision in which the profile runs it."""
    with setting.device:
        network = stock_vae(setting.size.stock)
    network = network.to(vae_dtype(setting.dtype, setting.device)).eval().requires_grad_(False)
    return TiledVae(network, Placement("none", setting.device))


@torch.inference_mode()
def rows(setting: Setting, deadline: Deadline) -> Generator[Row, None, None]:
    """One tile of each side, encoded and decoded; memory beside the weights."""
    vae, device = random_vae(setting), setting.device
    for side in setting.size.vae_sides:
        image = torch.rand(1, 3, VAE_SCALE * side, VAE_SCALE * side, device=device)
        latent = torch.randn(1, setting.size.stock.latent_channels, side, side, device=device)
        ways = {
            "encode": lambda image=image: vae.encode(image, TileSizes()),
            "decode": lambda latent=latent: vae.decode(latent, TileSizes()),
        }
        for name, run in ways.items():
            answer, seconds = run(), []
            with watch_peak(device) as peak:
                for _ in range(ROUNDS):
                    started = time.perf_counter()
                    run()
                    synchronise(device)
                    seconds.append(time.perf_counter() - started)
            told = f"{vae.dtype}".removeprefix("torch.")
            told += ", finite" if answer.isfinite().all() else ", NOT FINITE"
            yield Row(f"VAE: {name} {VAE_SCALE * side} px", "ms", 1000 * min(seconds), note=told)
            computed = needed_bytes(name, side) / GIB if setting.is_real else None
            yield Row(f"memory of VAE: {name} {VAE_SCALE * side} px", "GiB", peak.num_bytes / GIB, computed)
