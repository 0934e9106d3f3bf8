"""What a job will take before it runs: its work by the networks' tiling, its seconds by the last runs measured."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from jobs.options import UpscaleRequest
from jobs.profiles import PROFILES


@dataclass(frozen=True)
class Work:
    """What one image asks of the networks.

    num_tiles: denoised in each step, over all regions. megapixels: what leaves the networks before it is resized,
    overlaps counted each time. num_passes: of the denoising network over each tile; guidance takes two a step, the
    preset fast none.
    """

    num_regions: int
    num_tiles: int
    megapixels: float
    num_passes: int


def plan_work(options: UpscaleRequest, width: int, height: int) -> Work:
    """The work of an input of width x height pixels.

    The profile must be in the catalogue (KeyError) and the size asked for within reach (JobError invalid-option).
    """
    profile = PROFILES[options.profile]
    answer = options.output_size(width, height)
    upscale = max(1.0, answer[0] / width, answer[1] / height)
    num_regions, num_tiles, num_pixels = profile.tiling.count(width, height, upscale)
    num_steps = profile.steps_of(options)
    is_guided = (options.cfg_scale or profile.cfg_scale) > 1
    return Work(num_regions, num_tiles, num_pixels / 1e6, num_steps * (2 if is_guided else 1))


def write_run(work: Work, timings: Mapping[str, float]) -> str:
    """A measured run as Redis keeps it behind its duration; timings: seconds per stage.

    Empty for a run without denoising: it says nothing of what perception and denoising take.
    """
    if not work.num_passes:
        return ""
    denoising = timings.get("denoising", 0.0)
    rest = sum(timings.values()) - denoising
    return f"{work.megapixels:.6f} {rest:.4f} {denoising / work.num_passes:.4f}"


def run_duration(run: str) -> float:
    """Seconds a kept run took, from its start to its end."""
    return float(run.split()[0])


def expected_seconds(work: Work, runs: Iterable[str]) -> float | None:
    """Seconds that `work` will take by the kept runs; None while none of them was measured.

    Denoising is measured apart, because its share grows with the steps asked for. Large images weigh more: small ones
    say little about how long the networks take.
    """
    measured = [[float(part) for part in run.split()[1:]] for run in runs]
    megapixels, rest, denoising = (sum(parts[i] for parts in measured if len(parts) == 3) for i in range(3))
    if not megapixels:
        return None
    return work.megapixels * (rest + work.num_passes * denoising) / megapixels
