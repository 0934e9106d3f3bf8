"""The catalogue of profiles: what a caller may know of each before sending an image."""

from dataclasses import dataclass
from math import ceil

from jobs.errors import JobError
from jobs.options import UpscaleRequest


@dataclass(frozen=True)
class Licence:
    """The terms one part of a profile comes under; url is where the operator reads them in full."""

    part: str
    name: str
    url: str
    is_commercial_use_allowed: bool


@dataclass(frozen=True)
class Tiling:
    """How the networks cut an image, for who must not load them; a test holds it to the networks' own plan.

    patch, min_side: in input pixels; the rest in patches. scale: pixels a side that leave the networks per input pixel.
    """

    patch: int = 4
    min_side: int = 16
    scale: int = 4
    region: int = 32
    region_overlap: int = 4
    tile: int = 12
    tile_overlap: int = 2

    def count(self, width: int, height: int) -> tuple[int, int, int]:
        """(regions, tiles in all of them, pixels leaving the networks) for an input of width x height pixels."""
        sides = [ceil(max(side, self.min_side) / self.patch) for side in (width, height)]
        region_sides = [min(side, self.region) for side in sides]
        num_regions = num_tiles = num_pixels = 1
        for side, region_side in zip(sides, region_sides, strict=True):
            regions = _pieces(side, self.region, self.region_overlap)
            num_regions *= regions
            num_tiles *= regions * _pieces(region_side, self.tile, self.tile_overlap)
            num_pixels *= regions * region_side * self.patch * self.scale
        return num_regions, num_tiles, num_pixels


def _pieces(length: int, piece: int, overlap: int) -> int:
    # All pieces of an axis have one length, and neighbours share the overlap at least.
    return 1 if length <= piece else 1 + ceil((length - piece) / (piece - overlap))


@dataclass(frozen=True)
class Profile:
    """One choice of networks. num_steps, cfg_scale: its defaults; best_num_steps: of the preset `best`.

    reason: why it is not installed.
    """

    name: str
    title: str
    description: str
    is_installed: bool
    reason: str
    max_scale: float
    num_steps: int
    best_num_steps: int
    cfg_scale: float
    runs_on: str
    licences: tuple[Licence, ...]
    tiling: Tiling = Tiling()

    def steps_of(self, options: UpscaleRequest) -> int:
        """Denoising steps of a request; 0: the coarse network alone."""
        if options.num_steps is not None:
            return options.num_steps
        return {"fast": 0, "balanced": self.num_steps, "best": self.best_num_steps}[options.preset]


_SD35 = Licence("Stable Diffusion 3.5 medium", "Stability AI Community License", "https://stability.ai/license", True)
_DIT4SR = Licence("DiT4SR weights", "non-commercial (see repository)", "https://github.com/Adam-duan/DiT4SR", False)
_DINOV3 = Licence("DINOv3", "DINOv3 License (gated)", "https://github.com/facebookresearch/dinov3", True)
_SD21 = Licence(
    "Stable Diffusion 2.1",
    "CreativeML Open RAIL++-M",
    "https://huggingface.co/stabilityai/stable-diffusion-2",
    True,
)
_SEESR = Licence("SeeSR weights", "Apache-2.0", "https://github.com/cswry/SeeSR", True)

_NOT_YET = "Its weights are the operator's to fetch after reading their licences; this version cannot run it yet."

PROFILES: dict[str, Profile] = {
    "compact": Profile(
        name="compact",
        title="Compact",
        description="The whole method at small size, trained by this project; weights come with it.",
        is_installed=True,
        reason="",
        max_scale=4.0,
        num_steps=1,
        best_num_steps=1,
        cfg_scale=1.0,
        runs_on="CPU in seconds; any GPU",
        licences=(Licence("all weights", "Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", True),),
    ),
    "quality": Profile(
        name="quality",
        title="Quality (SD3.5 medium, DiT4SR)",
        description="The large denoiser of the same class, with public backbones.",
        is_installed=False,
        reason=_NOT_YET,
        max_scale=4.0,
        num_steps=40,
        best_num_steps=40,
        cfg_scale=8.0,
        runs_on="GPU, 24 GB and up",
        licences=(_SD35, _DIT4SR, _DINOV3),
    ),
    "fidelity": Profile(
        name="fidelity",
        title="Fidelity (SD2.1, SeeSR)",
        description="The faithful variant on SeeSR's backbone.",
        is_installed=False,
        reason=_NOT_YET,
        max_scale=4.0,
        num_steps=50,
        best_num_steps=50,
        cfg_scale=5.5,
        runs_on="GPU, 16 GB and up",
        licences=(_SD21, _SEESR, _DINOV3),
    ),
}


def find_profile(name: str) -> Profile:
    """The profile of that name.

    Raises JobError unknown-profile when the catalogue has none, profile-not-installed when it cannot be run.
    """
    profile = PROFILES.get(name)
    if profile is None:
        raise JobError("unknown-profile", f"'{name}' is not one of {', '.join(PROFILES)}.", field="profile")
    if not profile.is_installed:
        raise JobError("profile-not-installed", f"'{name}' is not installed. {profile.reason}", field="profile")
    return profile
