"""How sharply each modality is read at each noise level (Section 3.4, Eq. 15)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TemperatureSchedule(nn.Module):
    """Time embedding (B, D) and sigma (B,) in [0, 1] -> temperatures (B, M), each in (0, 1).

    tau = t s + (1 - t)(1 - s) with s = alpha e^-beta. The paper gives no range for alpha and beta; tau is positive for
    every t only if s is in (0, 1), hence the sigmoid and the softplus. Its t is sigma here: 1 is pure noise, the
    "early stage" of Section 3.4.
    """

    def __init__(self, embedding_width: int, num_modalities: int):
        super().__init__()
        self.to_alpha = nn.Linear(embedding_width, num_modalities)
        self.to_beta = nn.Linear(embedding_width, num_modalities)
        for layer in (self.to_alpha, self.to_beta):
            nn.init.zeros_(layer.weight)
        # s starts at 0.5, where tau is 0.5 for every sigma: no modality is preferred before training
        nn.init.constant_(self.to_alpha.bias, 2.0)
        beta = math.log(2 / (1 + math.exp(-2.0)))  # sigmoid(2) e^-beta = 0.5
        nn.init.constant_(self.to_beta.bias, math.log(math.expm1(beta)))

    def forward(self, sigma: Tensor, time_embedding: Tensor) -> Tensor:
        alpha = self.to_alpha(time_embedding).sigmoid()
        beta = F.softplus(self.to_beta(time_embedding))
        # float32 rounds a saturated s to exactly 0 or 1, where tau could be 0 and the softmax undefined
        mix = (alpha * torch.exp(-beta)).clamp(1e-4, 1 - 1e-4)
        t = sigma[:, None]
        return t * mix + (1 - t) * (1 - mix)
