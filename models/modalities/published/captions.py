"""Captions of the LR image: LLaVA as in the paper, a small captioner, a given prompt, or none."""

import importlib.util
import re
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from models.catalogue import require
from models.modalities.published.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from models.sources import SOURCES

# The question and the filter below are DiT4SR's; the paper names LLaVA and no question.
QUESTION = (
    "Please describe the actual objects in the image in a very detailed manner. Please do not include descriptions "
    "related to the focus and bokeh of this image. Please do not include descriptions like the background is blurred."
)
SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
UNWANTED = (
    "focus",
    "focal",
    "prominent",
    "close-up",
    "black and white",
    "blur",
    "depth",
    "dense",
    "locate",
    "position",
)
MAX_NEW_TOKENS = 512
CLIP_336 = Preprocessing(shortest_edge=336, crop=336, mode="bicubic", mean=CLIP_MEAN, std=CLIP_STD)
BLIP_384 = Preprocessing(size=(384, 384), mode="bicubic", mean=CLIP_MEAN, std=CLIP_STD)
Kind = Literal["llava", "blip", "none"]


class Captioner(Protocol):
    """Writes what an image shows."""

    def caption(self, lr_image: Tensor) -> str:
        """lr_image: (H, W, 3) in [0, 1], the LR image before upscaling -> one text, cleaned; "" for none."""


class FixedCaption:
    """The same text for every image: a given prompt, or "" for captions off."""

    def __init__(self, prompt: str = ""):
        self.prompt = prompt

    def caption(self, lr_image: Tensor) -> str:
        return self.prompt


class LlavaCaptioner:
    """LLaVA-1.5. Greedy, so that one image has one caption; DiT4SR draws (temperature 0.2, top_p 0.7) from the 13B."""

    def __init__(self, model: Any, tokenizer: Any, preprocessing: Preprocessing, is_sampled: bool = False):
        self.model, self.tokenizer, self.preprocessing, self.is_sampled = model, tokenizer, preprocessing, is_sampled

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float16,
        bits: Literal[4, 8] | None = None,
        is_sampled: bool = False,
    ) -> "LlavaCaptioner":
        """From a folder as the hub has it.

        bits: 8 or 4 for bitsandbytes' quantised weights, 7 and 4 GB by their count.
        Raises ModuleNotFoundError when bits are asked for and bitsandbytes is not installed.
        """
        from transformers import AutoTokenizer, LlavaForConditionalGeneration

        options: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
        if bits is not None:
            options |= {"quantization_config": _quantisation(bits, dtype), "device_map": {"": str(device)}}
        model = LlavaForConditionalGeneration.from_pretrained(folder, **options)
        if bits is None:
            model = model.to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model.eval(), tokenizer, Preprocessing.read(folder, CLIP_336), is_sampled)

    @torch.inference_mode()
    def caption(self, lr_image: Tensor) -> str:
        config = self.model.config
        pixels = self.preprocessing(lr_image.permute(2, 0, 1)[None]).to(self.model.device, self.model.dtype)
        grid = pixels.shape[-1] // config.vision_config.patch_size
        # "default" leaves out the class token of the vision tower
        num_tokens = grid**2 + (config.vision_feature_select_strategy == "full")
        image_token = self.tokenizer.convert_ids_to_tokens(config.image_token_id)
        text = f"{SYSTEM} USER: {image_token * num_tokens}\n{QUESTION} ASSISTANT:"
        ids = self.tokenizer(text, return_tensors="pt").input_ids.to(self.model.device)
        choice = {"do_sample": True, "temperature": 0.2, "top_p": 0.7} if self.is_sampled else _GREEDY
        written = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            max_new_tokens=MAX_NEW_TOKENS,
            num_beams=1,
            **choice,
        )
        return clean_caption(self.tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True))


class BlipCaptioner:
    """BLIP base: one short sentence, from a fourteenth of LLaVA's weights."""

    def __init__(self, model: Any, tokenizer: Any, preprocessing: Preprocessing):
        self.model, self.tokenizer, self.preprocessing = model, tokenizer, preprocessing

    @classmethod
    def load(
        cls, folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> "BlipCaptioner":
        """From a folder as the hub has it."""
        from transformers import AutoTokenizer, BlipForConditionalGeneration

        model = BlipForConditionalGeneration.from_pretrained(folder, dtype=dtype, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(model.to(device).eval(), tokenizer, Preprocessing.read(folder, BLIP_384))

    @torch.inference_mode()
    def caption(self, lr_image: Tensor) -> str:
        pixels = self.preprocessing(lr_image.permute(2, 0, 1)[None]).to(self.model.device, self.model.dtype)
        written = self.model.generate(pixel_values=pixels, max_new_tokens=40, num_beams=1, **_GREEDY)
        return clean_caption(self.tokenizer.decode(written[0], skip_special_tokens=True))


_GREEDY = {"do_sample": False, "temperature": None, "top_p": None}


def load_captioner(
    kind: Kind,
    root: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float16,
    bits: Literal[4, 8] | None = None,
    is_sampled: bool = False,
) -> Captioner:
    """The captioner of that kind from the models folder. Raises MissingWeightsError when it is not there."""
    if kind == "none":
        return FixedCaption()
    if kind not in ("llava", "blip"):
        raise ValueError(f"captions are 'llava', 'blip' or 'none', not {kind!r}")
    require(root, kind)
    folder = root / SOURCES[kind].folder
    if kind == "llava":
        return LlavaCaptioner.load(folder, device, dtype, bits, is_sampled)
    return BlipCaptioner.load(folder, device, dtype)


def clean_caption(text: str) -> str:
    """Drop the sentences that speak of focus, blur and the like: the result should be sharp whatever the input is.

    Sentences end at . ? and !; a number like 3.5 is cut too, as DiT4SR cuts it.
    """
    sentences = re.findall(r"[^.?!]+[.?!]*", text)
    kept = [sentence for sentence in sentences if not any(word in sentence.lower() for word in UNWANTED)]
    return "".join(kept).strip()


def _quantisation(bits: int, dtype: torch.dtype) -> Any:
    if bits not in (4, 8):
        raise ValueError(f"captions run in 8 or 4 bit, not {bits}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModuleNotFoundError(
            f"LLaVA in {bits} bit needs bitsandbytes: pip install 'm3esr[quantised]'", name="bitsandbytes"
        )
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
