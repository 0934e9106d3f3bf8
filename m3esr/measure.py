"""The verbs that measure: evaluate, audit, bench. The work is in evaluation/; here are options, progress and files."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from m3esr.environment import read_settings
from m3esr.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

    from jobs import Settings

SAMPLE = Path(__file__).parent / "samples" / "bridge.png"

Data = Annotated[Path, typer.Option("--data", help="Folder with hr/ and one or several lr*/.")]
Sets = Annotated[list[str] | None, typer.Option("--lr", help="Which of the lr* folders; several times; all if absent.")]
ProfileName = Annotated[str, typer.Option("--profile", help="Ours: a profile.")]
Preset = Annotated[str, typer.Option("--preset", help="fast, balanced or best.")]
NumSteps = Annotated[int | None, typer.Option("--num-steps", help="Denoising steps, whatever the preset.")]
Checkpoint = Annotated[Path | None, typer.Option("--checkpoint", help="Folder of other weights than the profile's.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only so many images, spread evenly.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Processor threads; torch's choice if absent.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the noise.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write everything that was measured here.")]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="Write the tables here.")]
AGAINST = "A peer: bicubic, compact@fast, NAME=FILE (.onnx .pb .pth), NAME=FOLDER of outputs; several times."


def evaluate(
    data: Data,
    profile: ProfileName = "compact",
    against: Annotated[list[str] | None, typer.Option("--against", metavar="METHOD", help=AGAINST)] = None,
    lr: Sets = None,
    out: Annotated[Path, typer.Option("--out", help="Outputs and scores; run again to go on.")] = Path(
        "out/evaluation"
    ),
    lpips: Annotated[Path | None, typer.Option("--lpips", help="Weights of LPIPS-squeeze, .npz.")] = None,
    niqe: Annotated[Path | None, typer.Option("--niqe", help="Pristine parameters of NIQE, .npz.")] = None,
    paper_metrics: Annotated[bool, typer.Option("--paper-metrics", help="The paper's six, by pyiqa.")] = False,
    preset: Preset = "balanced",
    num_steps: NumSteps = None,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    limit: Limit = None,
    threads: Threads = None,
    sheets: Annotated[int, typer.Option("--sheets", min=0, help="So many pictures side by side.")] = 10,
    table1: Annotated[bool, typer.Option("--table1", help="The paper's Table 1 with ours below.")] = False,
    table3: Annotated[bool, typer.Option("--table3", help="The paper's Table 3 with ours beside.")] = False,
    trained_without: Annotated[
        list[str] | None, typer.Option("--trained-without", metavar="NAME=FOLDER", help="For --table3; several times.")
    ] = None,
    markdown: Markdown = None,
    json: Json = None,
) -> None:
    """Score a profile and its peers on a folder of pairs, in one table."""
    settings = read_settings()
    with told_errors(), progress_bar() as bar:
        from evaluation.bench import use_threads
        from evaluation.data import find_sets
        from evaluation.evaluate import Evaluation, parse_trained_without
        from evaluation.methods import parse_method
        from evaluation.runner import Run

        ours = our_method(settings, profile, checkpoint, options_of(preset, num_steps, seed))
        whole = Evaluation(
            Run(out, scorer_of(lpips, niqe, paper_metrics), use_threads(threads), advance(bar)),
            find_sets(data, tuple(lr or ()), limit),
            ours,
            tuple(parse_method(text, machine_of(settings)) for text in against or ()),
            data.resolve().name,
            sheets,
            parse_trained_without(trained_without or []),
        )
        tables, kept = whole.everything(table1=table1, table3=table3)
        write_files(tables, markdown, json, kept)
    missing = [f"--{name} FILE adds {name.upper()}" for name, file in (("lpips", lpips), ("niqe", niqe)) if not file]
    show(tables, missing + [f"pictures side by side: {out}/*/sheets"] * bool(sheets))


def audit(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with hr/ and lr*/.")],
    profile: ProfileName = "compact",
    lr: Annotated[str | None, typer.Option("--lr", help="Which lr* folder; the last by name if absent.")] = None,
    num_steps: NumSteps = None,
    seed: Seed = 0,
    checkpoint: Checkpoint = None,
    limit: Limit = None,
    threads: Threads = None,
    markdown: Markdown = None,
    json: Json = None,
) -> None:
    """Measure whether what guided the pictures is true: Gamma of the theorem, router sanity, uncertainty."""
    settings = read_settings()
    with told_errors(), progress_bar() as bar:
        from evaluation.audit import audit as run_audit
        from evaluation.audit import audit_tables
        from evaluation.bench import use_threads
        from evaluation.data import find_sets
        from evaluation.report import machine
        from models.pipeline import Upscaler

        use_threads(threads)
        sets = find_sets(folder, (lr,) if lr else (), limit)
        name = list(sets)[-1]
        # float32: gradients through rounded products would measure the rounding
        upscaler = Upscaler.load(profile, device=device_of(settings), checkpoint=checkpoint, dtype="fp32")
        task = bar.add_task("audit", total=1.0)
        found = run_audit(
            upscaler,
            sets[name],
            options_of("balanced", num_steps, seed),
            lambda done, total: bar.update(task, completed=done / total),
            seed,
        )
        data = f"{folder.resolve().name}/{name}"
        tables = list(audit_tables(found, data))
        kept = {"machine": machine(), "model": upscaler.describe(), "data": data, **found}
        write_files(tables, markdown, json, kept)
    show(tables)


def bench(
    size: Annotated[int, typer.Option("--size", min=1, max=4096, help="Side of the LR image in pixels.")] = 128,
    profile: ProfileName = "compact",
    preset: Preset = "balanced",
    num_steps: NumSteps = None,
    against: Annotated[list[str] | None, typer.Option("--against", metavar="METHOD", help=AGAINST)] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Measured runs.")] = 7,
    warm_ups: Annotated[int, typer.Option("--warm-ups", min=1, help="Runs before, not measured.")] = 1,
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    markdown: Markdown = None,
    json: Json = None,
) -> None:
    """Time every stage of an upscale on this machine, and a peer in turns with it."""
    settings = read_settings()
    with told_errors(), progress_bar() as bar:
        from evaluation.bench import Bench, bench_table, make_lr_image, use_threads
        from evaluation.data import read_image, to_float
        from evaluation.methods import load_method, parse_method
        from models.pipeline import Upscaler
        from worker.main import backbone_options

        use_threads(threads)
        methods = [parse_method(text, machine_of(settings)) for text in against or ()]
        if folders := [method.name for method in methods if method.kind == "folder"]:
            raise UserError(f"{folders[0]} is a folder of outputs: there is nothing to time")
        device, dtype = device_of(settings), settings.dtype
        upscaler = Upscaler.load(profile, device, checkpoint, dtype, backbone_options(settings))
        lr_image = make_lr_image(to_float(read_image(SAMPLE)), size)
        peers = {method.name: load_method(method) for method in methods}
        task = bar.add_task("bench", total=1.0)
        found = Bench(upscaler, lr_image, options_of(preset, num_steps, 0), repeats, warm_ups, peers).run(
            lambda done, total: bar.update(task, completed=done / total)
        )
        tables = [bench_table(found)]
        write_files(tables, markdown, json, found)
    show(tables)


def options_of(preset: str, num_steps: int | None, seed: int) -> Any:
    from models.requests import UpscaleOptions

    return UpscaleOptions(preset=preset, num_steps=num_steps, seed=seed)


def device_of(settings: "Settings") -> str:
    from models.runs import resolve_device

    return str(resolve_device(settings.device))


def machine_of(settings: "Settings") -> Any:
    """Where and how profiles run, as the worker would run them."""
    from evaluation.methods import Machine
    from worker.main import backbone_options

    return Machine(device=device_of(settings), dtype=settings.dtype, backbone=backbone_options(settings))


def our_method(settings: "Settings", profile: str, checkpoint: Path | None, options: Any) -> Any:
    """The evaluated profile, named after its preset or steps where they are not the default."""
    from evaluation.methods import profile_method

    steps = options.num_steps or (options.preset if options.preset != "balanced" else None)
    name = f"{profile}@{steps}" if steps else profile
    return profile_method(name, profile, options, machine_of(settings), checkpoint)


def scorer_of(lpips: Path | None, niqe: Path | None, paper_metrics: bool) -> Any:
    from evaluation.paper_metrics import PaperMetrics
    from evaluation.scoring import Scorer

    return Scorer(lpips, niqe, PaperMetrics() if paper_metrics else None)


@contextmanager
def told_errors() -> Iterator[None]:
    """Turns what the networks and the evaluation refuse into one line for a person."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


@contextmanager
def progress_bar() -> Iterator["Progress"]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        yield bar


def advance(bar: "Progress") -> Callable[[str, str, int, int], None]:
    """Shows one bar per set and method."""
    tasks: dict[tuple[str, str], Any] = {}

    def step(set_name: str, method: str, done: int, total: int) -> None:
        if (set_name, method) not in tasks:
            tasks[set_name, method] = bar.add_task(f"{set_name} {method}", total=total)
        bar.update(tasks[set_name, method], completed=done)

    return step


def write_files(tables: list[Any], markdown: Path | None, json: Path | None, kept: Any) -> None:
    from evaluation.report import to_json
    from m3esr.files import write_atomically

    if markdown is not None:
        write_atomically(markdown, "\n".join(table.markdown() for table in tables).encode())
    if json is not None:
        write_atomically(json, to_json(kept).encode())


def show(tables: list[Any], notes: Iterable[str] = ()) -> None:
    from rich.console import Console

    console = Console()
    for table in tables:
        table.show(console)
    for note in notes:
        console.print(note, style="dim", highlight=False)
