"""Makes the outputs of one method in a process of its own, so that its peak memory is its own."""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.data import Pair, read_image
from evaluation.errors import EvaluationError
from evaluation.methods import Method, load_method

OnDone = Callable[[str, float, float], None]  # (stem, seconds, peak memory so far [MB])


def produce(method: Method, pairs: Sequence[Pair], folder: Path, threads: int, on_done: OnDone) -> None:
    """Writes `<stem>.png` of each pair into `folder`, telling each as it is done.

    The first image runs once unmeasured. Raises EvaluationError with what the method had to say when it fails.
    """
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(method, list(pairs), folder, threads, sender), daemon=True)
    process.start()
    sender.close()
    try:
        while True:
            message = receiver.recv()
            if message is None:
                return
            if isinstance(message, str):
                raise EvaluationError(f"{method.name}: {message}")
            on_done(*message)
    except EOFError:
        process.join()
        raise EvaluationError(
            f"{method.name}: its process died ({process.exitcode}); is there memory enough?"
        ) from None
    finally:
        process.terminate()
        process.join()


def _run(method: Method, pairs: list[Pair], folder: Path, threads: int, sender: Connection) -> None:
    import torch

    torch.set_num_threads(threads)
    try:
        upscale = load_method(method)
        for index, pair in enumerate(pairs):
            lr_image = read_image(pair.lr)
            if index == 0:
                upscale(lr_image)
            started = time.perf_counter()
            sr_image = upscale(lr_image)
            seconds = time.perf_counter() - started
            write_png(folder / f"{pair.stem}.png", sr_image)
            sender.send((pair.stem, seconds, peak_memory_mb()))
        sender.send(None)
    except Exception as error:  # told in the parent, in one line
        sender.send(str(error) if isinstance(error, EvaluationError) else f"{type(error).__name__}: {error}")


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    temporary = path.with_suffix(".part")
    Image.fromarray(image).save(temporary, "PNG")
    temporary.replace(path)


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far [MB]."""
    try:
        # not getrusage: its figure survives exec, so a child would begin with its parent's peak
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
