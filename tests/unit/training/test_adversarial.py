"""The adversary: it learns to tell photographs from results, and its verdict points towards photographs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from training.adversarial import Adversary, AdversaryConfig
from training.image_losses import ADVERSARY_SIDE, ImageLosses, ImageLossWeights

SMALL = AdversaryConfig(width=8, learning_rate=2e-3)


def photographs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sharp noise as the photograph, the same blurred as what an undecided network answers."""
    sharp = torch.rand(4, 3, 32, 32, generator=generator)
    return F.avg_pool2d(sharp, 3, stride=1, padding=1), sharp


def test_it_learns_to_tell_blurred_from_sharp():
    torch.manual_seed(0)
    generator, adversary = torch.Generator().manual_seed(0), Adversary(SMALL)
    losses = []
    for _ in range(60):
        soft, sharp = photographs(generator)
        losses.append(float(adversary.improve(soft, sharp, soft)))
    assert losses[0] > 1.5
    assert sum(losses[-5:]) / 5 < 0.5


def test_its_verdict_falls_where_the_result_comes_nearer_to_the_photograph():
    torch.manual_seed(0)
    generator, adversary = torch.Generator().manual_seed(0), Adversary(SMALL)
    for _ in range(60):
        soft, sharp = photographs(generator)
        adversary.improve(soft, sharp, soft)
    soft, sharp = photographs(generator)
    verdicts = [float(adversary.judge(torch.lerp(soft, sharp, share), sharp, soft).mean()) for share in (0.0, 0.5, 1.0)]
    assert verdicts[0] > verdicts[1] > verdicts[2]


def test_judging_sends_gradients_to_the_result_and_leaves_the_discriminator_as_it_is():
    torch.manual_seed(0)
    adversary = Adversary(SMALL)
    before = [p.clone() for p in adversary.network.parameters()]
    result = torch.rand(2, 3, 32, 32, requires_grad=True)
    adversary.judge(result, torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)).sum().backward()
    assert result.grad is not None and float(result.grad.abs().sum()) > 0
    assert all(p.grad is None for p in adversary.network.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, adversary.network.parameters(), strict=True))
    assert all(p.requires_grad for p in adversary.network.parameters())


def test_the_adversary_sees_the_same_even_place_of_every_image():
    losses = ImageLosses(ImageLossWeights(adversarial=0.01), None, seed=0)
    places = torch.arange(192.0 * 160).reshape(1, 1, 160, 192)
    corners = set()
    for _ in range(8):
        cuts = losses.cut(places, places + 0.5)
        assert torch.equal(cuts[0] + 0.5, cuts[1])
        assert cuts[0].shape[-2:] == (ADVERSARY_SIDE, ADVERSARY_SIDE)
        row, column = divmod(int(cuts[0][0, 0, 0, 0]), 192)
        assert row % 2 == column % 2 == 0
        corners.add((row, column))
    assert len(corners) > 4
    assert losses.cut(places[..., :64, :64])[0].shape[-2:] == (64, 64)
