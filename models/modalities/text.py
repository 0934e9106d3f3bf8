"""The text modality of `compact`: its own small tokenizer and encoder, in the place of CLIP and T5."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from models.transformer import EncoderLayer

PAD, UNKNOWN = "[PAD]", "[UNK]"


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    vocabulary_size: int = 512
    max_tokens: int = 16
    width: int = 128
    num_heads: int = 4
    num_layers: int = 2


def train_tokenizer(captions: Iterable[str], config: TextConfig) -> Tokenizer:
    """A lower-case byte-pair tokenizer over `captions`. Characters it has never seen become [UNK]."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789,.-'")
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size, special_tokens=[PAD, UNKNOWN], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def tokenize(tokenizer: Tokenizer, captions: list[str], config: TextConfig) -> Tensor:
    """Captions -> token ids (B, max_tokens), cut or padded with id 0."""
    ids = torch.zeros(len(captions), config.max_tokens, dtype=torch.long)
    for row, caption in enumerate(captions):
        found = tokenizer.encode(caption).ids[: config.max_tokens]
        ids[row, : len(found)] = torch.tensor(found, dtype=torch.long)
    return ids


class TextEncoder(nn.Module):
    """Token ids (B, L) -> embeddings (B, L, J) for the joint attention and their mean (B, J) for the modulation.

    A caption without tokens is the null text: the position-only embedding that classifier-free guidance subtracts.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary_size, config.width)
        self.position = nn.Parameter(torch.randn(config.max_tokens, config.width) * 0.02)
        self.layers = nn.ModuleList(EncoderLayer(config.width, config.num_heads) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        visible = ids != 0
        visible = visible | ~visible.any(1, keepdim=True)  # a null text sees its own padding, else its softmax is empty
        x = self.embed(ids) + self.position
        for layer in self.layers:
            x = layer(x, visible)
        x = self.norm(x)
        share = visible[..., None].to(x.dtype)
        return x, (x * share).sum(1) / share.sum(1)
