"""The frozen shapes of the networks that read guidance from the LR image."""

from dataclasses import asdict, dataclass

# What the segment classes were called when photographs were labelled by hand; the index is the channel of
# the logits.
SEGMENT_NAMES = (
    "sky",
    "clouds",
    "night sky",
    "water",
    "trees",
    "plants",
    "flowers",
    "rock",
    "sand",
    "snow",
    "a building",
    "wood",
    "a plain surface",
    "fabric",
    "a person",
    "an animal",
    "food",
    "an object",
    "lights",
    "a blurred background",
    "darkness",
)


@dataclass(frozen=True)
class PerceptionConfig:
    """Sizes of PerceptionNet. One token covers 4 x 4 LR pixels (16 x 16 HR pixels at x4)."""

    width: int = 128  # D, channels of a token
    fine_width: int = 32  # channels at half the LR resolution, where the heads find their edges
    num_blocks: int = 3  # transformer blocks
    num_heads: int = 4  # N
    mlp_ratio: int = 3
    dino_channels: int = 64  # Cd: principal components of the teachers' patch features
    num_segments: int = len(SEGMENT_NAMES)  # S: segment classes, see SEGMENT_NAMES

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")

    def to_dict(self) -> dict[str, int]:
        """The fields as plain numbers, for the metadata of a checkpoint."""
        return asdict(self)
