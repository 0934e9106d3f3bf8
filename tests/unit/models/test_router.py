"""Facts of Section 3.3: what the router's weights may and may not depend on."""

import torch

from models.resize import resize
from models.routing.coarse import CoarseConfig, CoarseNetwork, reconcile, upscale
from models.routing.router import RouterConfig, UncertaintyRouter
from tests.unit.models.tiny import tiny_network

ROUTER = RouterConfig(width=12, num_heads=2, num_layers=1)


def test_weights_lie_between_zero_and_one_one_per_patch_and_modality():
    torch.manual_seed(0)
    router = UncertaintyRouter(ROUTER)
    torch.nn.init.normal_(router.to_weights.weight, std=20.0)
    weights = router(torch.rand(2, 3, 16, 24), torch.rand(2, 1, 4, 6))
    assert list(weights) == list(ROUTER.modalities)
    for w in weights.values():
        assert w.shape == (2, 4, 6)
        assert ((w >= 0) & (w <= 1)).all()


def test_the_uncertainty_map_changes_the_weights():
    torch.manual_seed(0)
    router, lr_image = UncertaintyRouter(ROUTER), torch.rand(1, 3, 16, 16)
    calm = router(lr_image, torch.zeros(1, 1, 4, 4))
    unsure = router(lr_image, torch.full((1, 1, 4, 4), 0.5))
    assert any((calm[name] - unsure[name]).abs().max() > 1e-4 for name in calm)


def test_weights_do_not_change_with_the_timestep():
    """They are part of what is prepared once; only the temperatures know sigma."""
    network = tiny_network()
    lr_image = torch.rand(1, 3, 16, 16)
    upscaled, coarse_sr, uncertainty_map = network.estimate(lr_image)
    modalities, _ = network.render(lr_image, coarse_sr, ("depth", "dino"))
    lr_latent, start = network.latents(upscaled, coarse_sr)
    ids = torch.zeros(1, 8, dtype=torch.long)
    weights = {name: w for name, w in network.router(lr_image, uncertainty_map).items() if name in modalities}
    prepared = network.prepare(lr_latent, modalities, weights, ids)
    before = {name: w.clone() for name, w in prepared.fusion.expert_weights.items()}
    velocities = [network.predict(start, prepared, torch.tensor([sigma])).velocity for sigma in (0.1, 0.9)]
    assert not torch.equal(*velocities)
    for name, w in before.items():
        assert torch.equal(prepared.fusion.expert_weights[name], w)
        assert torch.equal(weights[name].flatten(1), w)


def test_a_fresh_coarse_network_is_bicubic_upscaling():
    lr_image = torch.rand(1, 3, 13, 10)
    network = CoarseNetwork(CoarseConfig(widths=(8, 12), num_blocks=(1, 1)))
    assert torch.allclose(network(lr_image), upscale(lr_image, 4), atol=1e-6)


def test_a_trusted_lr_image_is_met_and_a_distrusted_one_ignored():
    lr_image = upscale(torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)), 4)
    sr_image = upscale(lr_image, 4) + 0.1
    trust = torch.zeros(1, 1, 24, 24)
    assert torch.equal(reconcile(sr_image, lr_image, trust), sr_image)
    trust[..., :12] = 1
    missed = (resize(reconcile(sr_image, lr_image, trust), (24, 24)) - lr_image).abs().mean((0, 1, 2))
    assert missed[:8].max() < 0.012  # met on the trusted half, but for what the interpolation itself loses
    assert missed[16:].min() > 0.09


def test_consistency_begins_as_nothing_and_its_gate_learns():
    network = CoarseNetwork(CoarseConfig(widths=(8, 12), num_blocks=(1, 1), has_consistency=True))
    lr_image = torch.rand(1, 3, 12, 12)
    assert torch.allclose(network(lr_image), upscale(lr_image, 4), atol=1e-6)
    network(lr_image).square().mean().backward()
    assert network.tail.weight.grad[-1].abs().max() > 0


def test_the_margin_changes_the_border_only():
    network = CoarseNetwork(CoarseConfig(widths=(8, 12), num_blocks=(1, 1)))
    torch.nn.init.normal_(network.tail.weight, std=0.1)
    lr_image = torch.rand(1, 3, 64, 64)
    with_margin, without = network(lr_image), network(lr_image, margin=0)
    assert torch.allclose(with_margin[..., 96:160, 96:160], without[..., 96:160, 96:160], atol=1e-5)
    assert not torch.allclose(with_margin[..., :4, :4], without[..., :4, :4], atol=1e-3)
