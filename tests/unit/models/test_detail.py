"""The detail network: what it may be told, and how its picture becomes the step of the sampler."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.configs import SamplerConfig
from models.network import GUIDES, M3ESR, Mirror, guide_images, point_mirror
from models.pipeline import PATCH
from models.region import Crops, Region, denoise
from models.requests import UpscaleOptions
from models.resize import resize
from models.routing.coarse import CoarseConfig, CoarseNetwork
from tests.unit.models.test_pipeline import picture
from tests.unit.models.tiny import tiny_config, tiny_network, tiny_upscaler
from training.widening import widen

PLAIN = CoarseConfig(widths=(8, 10, 12), num_blocks=(1, 1, 1))
DETAIL = replace(PLAIN, num_guides=GUIDES, token_width=16)
ROWS, COLUMNS = 14, 5  # more than a tile


def trained(config: CoarseConfig) -> CoarseNetwork:
    torch.manual_seed(0)
    network = CoarseNetwork(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def test_what_it_is_told_changes_nothing_before_it_has_learned_to_listen_and_the_picture_afterwards():
    plain, lr_image = trained(PLAIN), torch.rand(1, 3, 16, 20)
    told = {"guides": torch.rand(1, 3 * GUIDES, 64, 80), "tokens": torch.rand(1, 16, 4, 5)}
    with torch.no_grad():
        network = widen(plain.state_dict(), PLAIN, DETAIL)
        assert torch.allclose(network(lr_image, **told), plain(lr_image), atol=1e-5)
        network = trained(DETAIL)
        for name, value in told.items():
            assert (network(lr_image, **{name: value}) - network(lr_image)).abs().max() > 0.01


def test_guides_and_tokens_lie_where_the_image_does():
    """What is said of one place changes the picture there, and nothing far from it."""
    network, lr_image = trained(DETAIL), torch.rand(1, 3, 128, 128)
    guides, tokens = torch.zeros(1, 3 * GUIDES, 512, 512), torch.zeros(1, 16, 32, 32)
    with torch.no_grad():
        silent = network(lr_image, guides=guides, tokens=tokens)
        guides[..., 400:408, 80:88] = 1
        shown = (network(lr_image, guides=guides, tokens=tokens) - silent).abs().amax((0, 1))
        guides.zero_()
        tokens[..., 25, 5] = 1
        heard = (network(lr_image, guides=guides, tokens=tokens) - silent).abs().amax((0, 1))
    for change in (shown, heard):
        assert change[400:408, 80:88].max() > 0.3 * change.max() > 0
        assert change[:200].max() < 1e-5 and change[:, 300:].max() < 1e-5


def test_tokens_need_the_level_on_whose_grid_they_lie():
    with pytest.raises(ValueError, match="level 2"):
        CoarseNetwork(replace(DETAIL, widths=(8, 10), num_blocks=(1, 1)))


def test_guides_are_three_images_and_the_absent_are_zero():
    coarse = torch.rand(1, 3, 8, 8)
    alone = guide_images(coarse)
    assert alone.shape == (1, 3 * GUIDES, 8, 8)
    assert alone[:, 3:].abs().max() == 0 and alone[:, :3].abs().max() > 0
    assert guide_images(coarse, coarse, coarse)[:, 3:].abs().min() == alone[:, :3].abs().min()


class Sampled:
    """A region of the tiny network with a detail network, sampled with a `draw` of the test's choice."""

    def __init__(self, num_guides: int = GUIDES):
        self.network = tiny_network(detail=DETAIL, sampler=replace(tiny_config().sampler, noise_scale=0.5))
        generator = torch.Generator().manual_seed(1)
        lr_image = torch.rand(1, 3, PATCH * ROWS, PATCH * COLUMNS, generator=generator)
        noise = torch.randn(1, 64, 2 * ROWS, 2 * COLUMNS, generator=generator)
        ids = torch.zeros(1, 8, dtype=torch.long)
        self.region = Region(lr_image, noise, ids, ids)
        self.estimate = self.network.estimate(lr_image)
        modalities, tokens = self.network.render(lr_image, self.estimate[1], ("depth", "dino"))
        self.crops: Crops = self.region.prepare(
            self.network, self.estimate[0], self.estimate[2], modalities, tokens, dict.fromkeys(modalities, 1.0), 1.0
        )

    def sample(self, sigmas: list[float]) -> Tensor:
        levels = torch.tensor(sigmas)
        return denoise(self.network, self.region, self.crops, *self.estimate, levels, 1.0, lambda _: None)


@pytest.mark.parametrize("sigmas", [[1.0, 0.0], [1.0, 0.5, 0.1, 0.0]])
def test_the_flow_ends_at_the_picture_that_was_drawn(monkeypatch, sigmas):
    """If every step draws the same picture, any number of steps gives it, with what the latent cannot hold."""
    sampled = Sampled()
    target = torch.rand(1, 3, 16 * ROWS, 16 * COLUMNS)
    monkeypatch.setattr(sampled.network, "draw", lambda *_, **__: target)
    assert torch.allclose(sampled.sample(sigmas), target, atol=1e-5)


def test_a_later_step_sees_the_earlier_ones_picture(monkeypatch):
    """At sigma s the noisy latent is (1 - s) of the way from the noisy start to the picture's latent."""
    sampled, seen = Sampled(), []
    codec, (upscaled, coarse_sr, _) = sampled.network.codec, sampled.estimate
    target = torch.rand(1, 3, 16 * ROWS, 16 * COLUMNS)
    monkeypatch.setattr(sampled.network, "draw", lambda *given, **_: seen.append(given[3][0]) or target)
    sampled.sample([1.0, 0.25, 0.0])
    noise, later = seen
    assert noise.abs().max() > 0.01
    lr_latent = codec.encode(upscaled)
    whole = codec.to_residual(codec.encode(target), lr_latent) - codec.to_residual(codec.encode(coarse_sr), lr_latent)
    assert torch.allclose(later, 0.25 * noise + 0.75 * whole, atol=1e-3)


def test_it_is_told_what_the_transformer_says(monkeypatch):
    """The features that the velocity is read from arrive, place by place, tiles blended."""
    sampled, given = Sampled(), []
    network = sampled.network
    monkeypatch.setattr(
        network, "draw", lambda *told, **_: given.append(told) or torch.zeros(1, 3, 16 * ROWS, 16 * COLUMNS)
    )
    sampled.sample([1.0, 0.0])
    _, _, _, (noisy, draft), tokens = given[0]
    assert tokens.shape == (1, 16, ROWS, COLUMNS)
    velocity = network.denoiser.to_latent(tokens.flatten(2).transpose(1, 2), noisy)
    outside_ramps = [*range(12), *range(16, 28)]  # where tiles meet, cells of one token weigh differently
    assert torch.allclose((noisy - draft)[:, :, outside_ramps], velocity[:, :, outside_ramps], atol=1e-4)


def test_drawing_without_a_detail_network_is_refused():
    images = torch.rand(1, 3, 64, 64)
    with pytest.raises(ValueError, match="detail"):
        tiny_network().draw(torch.rand(1, 3, 16, 16), images, images, (images, images), images)


def mirrored_drawing(network: M3ESR, share: float, turned: bool) -> Tensor:
    """What is drawn with a second view of this share everywhere; with `turned` of everything turned by 180 degrees."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((1, 3, 16, 20), (1, 3, 64, 80), (1, 3, 64, 80), (1, 3, 64, 80), (1, 16, 4, 5))
    lr_image, upscaled, coarse_sr, other, tokens = (torch.rand(shape, generator=generator) for shape in shapes)
    if turned:  # the two coarse images change places: one was made of the image as it is, the other of its mirror image
        lr_image, upscaled, tokens = (point_mirror(image) for image in (lr_image, upscaled, tokens))
        coarse_sr, other = point_mirror(other), point_mirror(coarse_sr)
    nothing = torch.zeros(1, 64, 8, 10)  # the codec's basis has no mirror image of its own
    mirror = Mirror(other, torch.full((1, 1, 64, 80), share))
    with torch.no_grad():
        return network.draw(lr_image, upscaled, coarse_sr, (nothing, nothing), tokens, mirror=mirror)


@pytest.mark.parametrize(("share", "is_symmetric"), [(0.0, False), (0.3, False), (0.5, True)])
def test_with_its_mirror_image_in_equal_parts_a_turned_image_gives_the_turned_picture(share, is_symmetric):
    """Alone it does not: what a convolution invents depends on the side it reads from."""
    network = tiny_network(detail=DETAIL)
    network.detail = trained(DETAIL)
    plain, turned = (mirrored_drawing(network, share, turned) for turned in (False, True))
    assert torch.allclose(plain, point_mirror(turned), atol=1e-5) == is_symmetric


def test_the_second_view_takes_part_where_the_coarse_image_leaves_noise_out():
    network = tiny_network(detail=DETAIL, sampler=SamplerConfig(mirror_share=0.4, mirror_noise=0.01))
    coarse_sr = torch.rand(1, 3, 16, 32).repeat_interleave(8, -1).repeat_interleave(8, -2)
    lr_image = resize(coarse_sr, (32, 64))
    lr_image[..., 40:] += 0.01 * torch.randn(1, 3, 32, 24).sign()
    mirror = network.look_in_mirror(lr_image, coarse_sr)
    assert mirror.share.shape == (1, 1, 128, 256)
    assert mirror.share[..., :120].max() < 1e-6
    assert torch.allclose(mirror.share[..., 200:], torch.tensor(0.2), atol=1e-3)  # half of the largest at mirror_noise
    with torch.no_grad():
        assert torch.equal(point_mirror(mirror.coarse_sr), network.estimate(point_mirror(lr_image))[1])
    network.config = replace(network.config, sampler=SamplerConfig())
    assert network.look_in_mirror(lr_image, coarse_sr) is None


def test_the_picture_is_drawn_with_the_second_view(monkeypatch):
    upscaler, mirrors = tiny_upscaler(detail=DETAIL, sampler=SamplerConfig(num_steps=1, mirror_share=0.4)), []
    draw = upscaler.network.draw
    monkeypatch.setattr(upscaler.network, "draw", lambda *a, **k: mirrors.append(k["mirror"]) or draw(*a, **k))
    upscaler.upscale(picture(16, 20), UpscaleOptions())
    assert 0 < float(mirrors[0].share.max()) <= 0.4
