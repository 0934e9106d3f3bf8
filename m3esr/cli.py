"""The command line. Each verb imports what it needs when it runs, so that `m3esr --help` is instant."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3esr import keys, measure, weights
from m3esr.environment import read_settings
from m3esr.errors import UserError, describe_os_error, missing_package

if TYPE_CHECKING:
    from jobs import Settings, UpscaleRequest

app = typer.Typer(
    name="m3esr",
    help="Super-resolution that shows what guided it and where it is unsure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(keys.app, name="keys")
app.add_typer(weights.app, name="models")
for verb in (measure.evaluate, measure.audit, measure.bench):
    app.command(verb.__name__)(verb)

Port = Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Instead of M3ESR_PORT.")]
Scale = Annotated[float | None, typer.Option(help="Output side over input side, above 1, at most 4.")]
Width = Annotated[int | None, typer.Option(help="Output width in pixels.")]
Height = Annotated[int | None, typer.Option(help="Output height in pixels.")]
Seed = Annotated[int, typer.Option(help="Same seed and options, same picture.")]
Preset = Annotated[str | None, typer.Option(help="fast (no diffusion), balanced or best.")]
NumSteps = Annotated[int | None, typer.Option(help="Denoising steps, whatever the preset.")]
Prompt = Annotated[str, typer.Option(help="What the picture shows; empty: captioned.")]
Modalities = Annotated[str | None, typer.Option(help="NAME or NAME:STRENGTH (0 to 2), comma-separated, or none.")]
Format = Annotated[str | None, typer.Option("--format", help="png, jpeg, webp, avif or tiff.")]
Maps = Annotated[Path | None, typer.Option("--maps", help="Folder for the weight and uncertainty maps.")]
CfgScale = Annotated[float | None, typer.Option(help="Guidance, 1 (off) to 20.")]
NegativePrompt = Annotated[str | None, typer.Option(help="What the picture must not look like.")]
ColorCorrection = Annotated[str | None, typer.Option(help="wavelet, adain or none.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Instead of M3ESR_CHECKPOINT: weights, or a models folder."),
]
ProfileName = Annotated[str | None, typer.Option("--profile", help="Networks to use; see m3esr profiles.")]


@app.command("up")
def run_up(
    port: Port = None,
    demo: Annotated[bool, typer.Option("--demo/--no-demo", help="Upscale a sample first.")] = True,
) -> None:
    """Start everything on this machine: Redis, the API, a worker; then a demo."""
    from m3esr.up import up

    raise typer.Exit(up(read_settings(), port=port, demo=demo))


@app.command("serve")
def run_serve(port: Port = None) -> None:
    """Serve the API (needs a Redis, and a worker to be ready)."""
    from service.main import run

    settings = read_settings()
    run(settings if port is None else settings.model_copy(update={"port": port}))


@app.command("work")
def run_work(profile: ProfileName = None) -> None:
    """Run jobs of one profile (needs a Redis); a worker process that dies or hangs is replaced."""
    from worker.supervisor import supervise

    raise typer.Exit(supervise(read_settings(), profile))


@app.command("upscale")
def run_upscale(
    sources: Annotated[list[Path], typer.Argument(metavar="IN...", help="Images to upscale.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="File; for several inputs a folder.")],
    maps: Maps = None,
    scale: Scale = None,
    width: Width = None,
    height: Height = None,
    seed: Seed = 0,
    preset: Preset = None,
    num_steps: NumSteps = None,
    prompt: Prompt = "",
    negative_prompt: NegativePrompt = None,
    cfg_scale: CfgScale = None,
    color_correction: ColorCorrection = None,
    modalities: Modalities = None,
    output_format: Format = None,
    profile: ProfileName = None,
    checkpoint: Checkpoint = None,
) -> None:
    """Upscale images here and now, without Redis or server."""
    from m3esr import local

    is_folder = len(sources) > 1 or output.is_dir()
    chosen = local.choose_format(output, output_format, is_folder)
    request = _request(
        scale=scale,
        width=width,
        height=height,
        seed=seed,
        preset=preset,
        num_steps=num_steps,
        prompt=prompt,
        negative_prompt=negative_prompt,
        cfg_scale=cfg_scale,
        color_correction=color_correction,
        modalities=modalities,
        output_format=chosen,
        profile=profile,
    )
    plans = local.make_plan(sources, output, maps, request.output_format)
    settings = read_settings()
    if checkpoint is not None:
        if not checkpoint.is_dir():
            raise UserError(f"{checkpoint}: no such folder")
        settings = settings.model_copy(update={"checkpoint": checkpoint})
    _upscale_all(plans, request, settings)


@app.command("submit")
def run_submit(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Image to upscale.")],
    url: Annotated[str, typer.Option(help="Address of the server.")],
    api_key: Annotated[
        str | None,
        typer.Option(envvar="M3ESR_API_KEY", help="Better in the variable: other users see command lines."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="OUT", help="Where the result goes.")] = None,
    maps: Maps = None,
    scale: Scale = None,
    width: Width = None,
    height: Height = None,
    seed: Seed = 0,
    preset: Preset = None,
    num_steps: NumSteps = None,
    prompt: Prompt = "",
    modalities: Modalities = None,
    output_format: Format = None,
    priority: Annotated[str | None, typer.Option(help="Among your own waiting jobs: low, normal or high.")] = None,
    profile: ProfileName = None,
) -> None:
    """Send an image to a server; with -o or --maps wait for the result."""
    from m3esr import local
    from m3esr.client import Client, ClientError

    if not source.is_file():
        raise UserError(f"{source}: {'is a folder' if source.is_dir() else 'no such file'}")
    if output is not None:
        output_format = local.choose_format(output, output_format, is_folder=False)
    options = {
        "scale": scale,
        "width": width,
        "height": height,
        "seed": seed,
        "preset": preset,
        "num_steps": num_steps,
        "prompt": prompt or None,
        "modalities": modalities,
        "output_format": output_format,
        "priority": priority,
        "profile": profile,
    }
    try:
        with Client(url, api_key=api_key) as client:
            _submit(client, source, output, maps, options)
    except ClientError as error:
        raise UserError(str(error)) from error


@app.command("profiles")
def run_profiles() -> None:
    """List the profiles with their licences."""
    from rich.console import Console
    from rich.table import Table

    from jobs import PROFILES
    from models import catalogue

    settings = read_settings()
    root = (settings.checkpoint or settings.models_dir).expanduser()
    table = Table("profile", "what", "runs on", "installed", "licences")
    for profile in PROFILES.values():
        licences = "\n".join(
            f"{licence.part}: {licence.name}" + ("" if licence.is_commercial_use_allowed else " (NON-COMMERCIAL)")
            for licence in profile.licences
        )
        is_installed = profile.is_bundled or not catalogue.missing(root, profile.name)
        installed = "yes" if is_installed else f"m3esr models pull {profile.name}"
        table.add_row(profile.name, profile.description, profile.runs_on, installed, licences)
    Console().print(table)


def main() -> None:
    """Run a verb; every failure a person can do something about is one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except (UserError, OSError, ModuleNotFoundError) as error:
        line = _one_line(error)
        if line is None:
            raise
        _fail(line)
    except SystemExit as error:
        if isinstance(error.code, str):  # service.main and worker.main say so when they cannot start
            _fail(error.code)
        raise
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        # typer carries its own copy of click: its usage errors are known by what they can do.
        if not hasattr(error, "format_message"):
            raise
        _fail(f"{error.format_message().rstrip('.')}. See m3esr --help.")
    sys.exit(code if isinstance(code, int) else 0)


def _one_line(error: Exception) -> str | None:
    if isinstance(error, BrokenPipeError):
        return "the output was closed"
    if isinstance(error, OSError):
        return describe_os_error(error)
    if isinstance(error, ModuleNotFoundError):
        told = missing_package(error)
        return None if told is None else str(told)
    return str(error)


def _fail(message: str) -> None:
    sys.stderr.write(f"m3esr: {' '.join(message.split())}\n")
    sys.exit(2)


def _request(**fields: Any) -> "UpscaleRequest":
    from pydantic import ValidationError

    from jobs import JobError, UpscaleRequest, find_profile

    try:
        request = UpscaleRequest(**{name: value for name, value in fields.items() if value is not None})
        find_profile(request.profile)
    except JobError as error:
        raise UserError(error.detail) from error
    except ValidationError as error:
        first = error.errors()[0]
        option = "".join(f"--{part}: " for part in first["loc"][:1]).replace("_", "-")
        raise UserError(option.replace("--output-format", "--format") + first["msg"]) from error
    return request


def _upscale_all(plans: list[Any], request: "UpscaleRequest", settings: "Settings") -> None:
    from rich.console import Console
    from rich.progress import Progress

    from m3esr.local import upscale_file
    from worker.main import load_upscaler

    console = Console(stderr=True, highlight=False)
    with console.status("loading the networks…"):
        upscaler = load_upscaler(settings, request.profile)
    with Progress(console=console) as progress:
        for plan in plans:
            bar = progress.add_task(plan.source.name, total=1.0)

            def show(event: Any, bar: Any = bar) -> None:
                progress.update(bar, completed=event.fraction)

            written = upscale_file(plan, request, upscaler, settings, show, console.print)
            progress.update(bar, completed=1.0)
            for path in written:
                typer.echo(str(path))


def _submit(client: Any, source: Path, output: Path | None, maps: Path | None, options: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from m3esr.demo import save_maps, write

    job = client.submit(source, **options)
    if output is None and maps is None:
        typer.echo(f"{client.url}v1/jobs/{job.id}")
        return
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task(source.name, total=1.0)
        job = client.wait(
            job, on_progress=lambda now: progress.update(bar, completed=now.fraction, description=now.stage)
        )
    written = [write(output, client.result(job))] if output is not None else []
    if maps is not None:
        written += save_maps(client, job, maps)
    for path in written:
        typer.echo(str(path))
