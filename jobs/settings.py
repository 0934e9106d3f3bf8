"""Settings of service and worker, read from the environment with the prefix M3ESR_."""

import base64
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """Every setting, with its default and its unit; `M3ESR_PORT=9000` sets `port`."""

    model_config = SettingsConfigDict(env_prefix="M3ESR_", frozen=True, extra="ignore", hide_input_in_errors=True)

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", description="Redis or Valkey that holds the jobs.")
    storage_url: str = Field(
        default="./var/storage",
        description="Where images lie: a folder, or a file:// s3:// gs:// az:// memory:// URL.",
    )
    host: str = Field(default="127.0.0.1", description="Address the API listens on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port the API listens on; 0 takes any free one.")
    allow_anonymous: bool = Field(
        default=False,
        description="Allow an address other than loopback although no API keys are configured.",
    )
    profiles: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("compact",),
        min_length=1,
        description="Profiles served, comma-separated; the first is the default of a request.",
    )
    device: str = Field(default="auto", description="Device of the worker: auto, cpu, cuda or cuda:N.")
    checkpoint: Path | None = Field(
        default=None,
        description="Weights the worker loads instead of the profile's own: for `compact` a folder of its two files, "
        "else a folder like M3ESR_MODELS_DIR.",
    )
    models_dir: Path = Field(
        default=Path("~/.cache/m3esr/models"),
        description="Folder of the public weights: owner/repository/path as on the hub.",
    )
    offload: Literal["none", "model", "sequential"] = Field(
        default="none",
        description="How `quality` and `fidelity` save GPU memory: none; model: a network lies there while it runs; "
        "sequential: every layer does, slowest.",
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto",
        description="Precision of the networks. auto: `quality` and `fidelity` bf16 on a GPU, fp32 on a CPU; "
        "`compact` bf16 on a CPU that has it, where a probe at the start finds it faster and right, else fp32.",
    )
    quality_weights: Literal["dit4sr_r1", "dit4sr_q", "dit4sr_f"] = Field(
        default="dit4sr_r1", description="Which of DiT4SR's published weights `quality` runs."
    )
    captions: Literal["llava", "blip", "none"] = Field(
        default="none", description="Who writes the caption of an image without a prompt for `quality` and `fidelity`."
    )
    caption_bits: Literal["16", "8", "4"] = Field(
        default="16", description="Bits per weight of the `llava` captioner; 8 and 4 need bitsandbytes and a GPU."
    )
    official_sampling: bool = Field(
        default=False,
        description="Let `quality` and `fidelity` draw where the released scripts draw, not one picture per seed.",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile the denoiser of `quality`: a first image of minutes, the others faster.",
    )
    max_upload_bytes: int = Field(
        default=32 * 2**20, gt=0, description="Largest body of a request, in bytes; of a batch with all its files."
    )
    max_input_pixels: int = Field(default=24_000_000, gt=0, description="Largest input image, in pixels.")
    max_output_pixels: int = Field(default=24_000_000, gt=0, description="Largest output image, in pixels.")
    decode_seconds: float = Field(
        default=1.5, gt=0, description="Processor time an upload may take to be decoded, in seconds."
    )
    decode_wall_seconds: float = Field(
        default=1.8,
        gt=0,
        description="The same by the clock, in seconds, without the time in which the decoder was denied a processor.",
    )
    decode_megabytes: int = Field(
        default=256,
        ge=50,
        description="Memory that opening one upload may take, in MiB, whatever its size: that of the decoder, and of "
        "the file itself in the API.",
    )
    decode_wait_seconds: float = Field(
        default=10.0,
        gt=0,
        description="How long an upload waits until one of the two decoders is free; then POST answers 503.",
    )
    max_queue_length: int = Field(
        default=100, gt=0, description="Jobs that may wait per profile; beyond that POST answers 429."
    )
    requests_per_minute: int = Field(
        default=0,
        ge=0,
        description="Images one API key may send in a minute, all anonymous callers together likewise; 0: no limit.",
    )
    megapixels_per_day: int = Field(
        default=0, ge=0, description="Output pixels one API key may order in a day, in millions; 0: no limit."
    )
    max_batch_files: int = Field(default=20, gt=0, le=1000, description="Files that one POST /v1/batches may send.")
    ttl_seconds: int = Field(
        default=86_400, ge=60, description="How long a finished job and its images are kept, in seconds."
    )
    job_timeout_seconds: int = Field(
        default=3_600, gt=0, description="Longest run of one job before it is failed, in seconds."
    )
    max_attempts: int = Field(default=3, gt=0, description="How often a job is started before it is failed for good.")
    lease_seconds: float = Field(
        default=15.0, ge=1, description="A running job whose worker is silent for this long is given to another."
    )
    stall_seconds: float = Field(
        default=180.0, ge=1, description="A worker whose job makes no progress for this long is killed and replaced."
    )
    drain_seconds: float = Field(
        default=20.0, ge=0, description="After SIGTERM a running job may go on for this long; then it is put back."
    )
    heartbeat_seconds: int = Field(
        default=15, gt=2, description="A worker silent for this long is no longer counted, in seconds."
    )
    webhook_secret: SecretStr | None = Field(
        default=None,
        description="Key that signs webhooks, `whsec_` and base64 of 24 to 64 bytes; several, separated by spaces, "
        "while receivers change from one to the other. Without it a `webhook_url` is refused.",
    )
    webhook_allow_http: bool = Field(default=False, description="Send webhooks to http:// addresses too.")
    webhook_allow_private: bool = Field(
        default=False, description="Send webhooks to loopback and private addresses too, for receivers on premises."
    )
    signed_url_seconds: int = Field(
        default=0,
        ge=0,
        le=604_800,
        description="How long a link to a result in an object store opens without a key; 0: no such links.",
    )
    allow_url_input: bool = Field(
        default=False, description="Take a `url` instead of a `file`: the API fetches the image, from public addresses."
    )
    url_input_seconds: float = Field(default=10.0, gt=0, description="Time that one such image may take to fetch.")
    url_input_allow_http: bool = Field(default=False, description="Fetch images from http:// addresses too.")
    url_input_allow_private: bool = Field(
        default=False, description="Fetch images from loopback and private addresses too, for servers on premises."
    )
    worker_metrics_host: str = Field(default="127.0.0.1", description="Address of the worker's /metrics.")
    worker_metrics_port: int = Field(
        default=8001, ge=0, le=65535, description="Port of the worker's /metrics; 0 switches it off."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severe level that is logged."
    )

    @field_validator("profiles", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _check_secrets(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value().strip():
            return None  # compose passes a variable that is not set on as an empty one
        _decode_secrets(value)
        return value

    @property
    def webhook_keys(self) -> tuple[bytes, ...]:
        """The keys inside `webhook_secret`; none without it."""
        return _decode_secrets(self.webhook_secret) if self.webhook_secret else ()

    @property
    def default_profile(self) -> str:
        """The profile of a request that names none."""
        return self.profiles[0]


def _decode_secrets(secret: SecretStr) -> tuple[bytes, ...]:
    keys = []
    for text in secret.get_secret_value().split():
        bare = text.removeprefix("whsec_")
        try:
            key = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
        except ValueError:
            key = b""
        if bare == text or not 24 <= len(key) <= 64:
            raise ValueError("each secret is whsec_ and the base64 of 24 to 64 bytes")
        keys.append(key)
    return tuple(keys)
