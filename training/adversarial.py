"""The adversary of the coarse network: a patch discriminator that has to tell photographs from results.

It sees the image beside the plain upscale of its LR image, so it judges "a sharp photograph of this", not "sharp".
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


@dataclass(frozen=True, kw_only=True)
class AdversaryConfig:
    width: int = 32  # channels at half resolution; doubled at 1/4 and at 1/8
    learning_rate: float = 2e-4


class PatchDiscriminator(nn.Module):
    """(B, 6, H, W), image and upscaled LR in [0, 1] -> a logit per 8 x 8 px, (B, 1, H/8, W/8); above 0 is "photograph".

    It works on 2 x 2 px unfolded to channels: a grid of period 2 is one constant channel to it, and easily told.
    """

    def __init__(self, config: AdversaryConfig):
        super().__init__()
        a, b, c = config.width, 2 * config.width, 4 * config.width
        layers = [
            nn.Conv2d(24, a, 3, padding=1),
            nn.Conv2d(a, b, 4, stride=2, padding=1),
            nn.Conv2d(b, b, 3, padding=1),
            nn.Conv2d(b, c, 4, stride=2, padding=1),
            nn.Conv2d(c, c, 3, padding=1),
        ]
        self.layers = nn.ModuleList(spectral_norm(layer) for layer in layers)
        self.head = nn.Conv2d(c, 1, 3, padding=1)

    def forward(self, pair: Tensor) -> Tensor:
        features = F.pixel_unshuffle(pair - 0.5, 2).contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            features = F.leaky_relu(layer(features), 0.2)
        return self.head(features)


class Adversary:
    """The discriminator with its optimizer. Hinge loss on pairs, relativistic on average for the generator's part."""

    def __init__(self, config: AdversaryConfig, device: torch.device | str = "cpu"):
        self.network = PatchDiscriminator(config).to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate, betas=(0.5, 0.99))

    def improve(self, sr_image: Tensor, hr_image: Tensor, upscaled: Tensor) -> Tensor:
        """One step of the discriminator on (B, 3, H, W) images; the loss it had, 2 is chance."""
        both = torch.cat([torch.cat([hr_image, sr_image.detach()]), torch.cat([upscaled, upscaled])], 1)
        real, fake = self.network(both).float().chunk(2)
        loss = F.relu(1 - (real - fake.mean())).mean() + F.relu(1 + (fake - real.mean())).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def judge(self, sr_image: Tensor, hr_image: Tensor, upscaled: Tensor) -> Tensor:
        """The generator's loss: how much less its images look like photographs than the photographs do; (B,)."""
        self.network.requires_grad_(False)
        with torch.no_grad():
            real = self.network(torch.cat([hr_image, upscaled], 1)).float().mean()
        fake = self.network(torch.cat([sr_image, upscaled], 1)).float()
        self.network.requires_grad_(True)
        return F.softplus(real - fake).mean((1, 2, 3))

    def state_dict(self) -> dict[str, object]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, dict]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
