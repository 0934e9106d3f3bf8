"""Prompt encoding of SD3.5: two CLIPs side by side, T5 behind them.

Dimension key: B batch  L text tokens  J text features
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.backbones.memory import Placement
from models.backbones.published_files import load_pretrained, load_tokenizer

T5_TOKENS = 256


class PromptEncoder:
    """Texts -> (embeddings (B, 77 + 256, J), pooled (B, P)), as stock SD3 pipelines encode them.

    CLIP hears the first 77 tokens of a text, T5 the first 256. Without T5, which is by far the largest part, its
    tokens are zero, as in the stock pipelines: long prompts are then cut and details lost.
    """

    def __init__(
        self, clips: Sequence[tuple[Any, Any]], t5: tuple[Any, Any] | None, text_features: int, placement: Placement
    ):
        self.clips, self.t5, self.text_features, self.placement = clips, t5, text_features, placement
        for _, network in self.parts():
            placement.add(network)

    @classmethod
    def load(
        cls, folder: Path, text_features: int, dtype: torch.dtype, placement: Placement, use_t5: bool = True
    ) -> "PromptEncoder":
        """Reads text_encoder, _2, _3 and their tokenizers of an SD3.5 `folder`.

        Args:
            text_features: J of the denoiser, the width of T5's tokens.
            use_t5: read text_encoder_3 if it is there.

        Raises:
            ValueError: files that are missing, broken or of another architecture.
        """
        from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

        clips = [
            (
                load_tokenizer(AutoTokenizer, folder / f"tokenizer{suffix}"),
                load_pretrained(CLIPTextModelWithProjection, folder / f"text_encoder{suffix}", dtype),
            )
            for suffix in ("", "_2")
        ]
        t5 = None
        if use_t5 and (folder / "text_encoder_3").is_dir():
            t5 = (
                load_tokenizer(AutoTokenizer, folder / "tokenizer_3"),
                load_pretrained(T5EncoderModel, folder / "text_encoder_3", dtype),
            )
        return cls(clips, t5, text_features, placement)

    def parts(self) -> list[tuple[Any, Any]]:
        """(tokenizer, network) of each encoder that is there."""
        return [*self.clips, *([self.t5] if self.t5 else [])]

    def encode(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, L, J) and pooled (B, P), on the device of the placement."""
        tokens, pooled = zip(*(self.read_clip(*clip, texts) for clip in self.clips), strict=True)
        clip = torch.cat(tokens, dim=-1)
        clip = F.pad(clip, (0, self.text_features - clip.shape[-1]))
        return torch.cat([clip, self.read_t5(texts, clip)], dim=-2), torch.cat(pooled, dim=-1)

    def read_clip(self, tokenizer: Any, network: Any, texts: list[str]) -> tuple[Tensor, Tensor]:
        """The last but one layer's tokens (B, 77, .) and the projected pooling (B, .)."""
        ids = self.tokenize(tokenizer, texts, tokenizer.model_max_length)
        with self.placement.use(network):
            read = network(ids, output_hidden_states=True)
        return read.hidden_states[-2], read.text_embeds

    def read_t5(self, texts: list[str], like: Tensor) -> Tensor:
        if self.t5 is None:
            return like.new_zeros(len(texts), T5_TOKENS, self.text_features)
        tokenizer, network = self.t5
        ids = self.tokenize(tokenizer, texts, T5_TOKENS)
        with self.placement.use(network):
            # no attention mask: SD3 was trained with the padding read as text
            return network(ids)[0].to(like.dtype)

    def tokenize(self, tokenizer: Any, texts: list[str], length: int) -> Tensor:
        encoded = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return encoded.input_ids.to(self.placement.device)
