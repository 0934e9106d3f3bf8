"""The same work without a service, in a process of its own, so that it has the worker's environment: as many threads.

Each line on stdin names a file to upscale and one to write; each on stdout tells the seconds from bytes to bytes.
"""

import sys
import time
from pathlib import Path

from jobs import Settings, UpscaleRequest
from worker import results
from worker.main import load_upscaler, warm_up


def upscale(upscaler, data: bytes) -> bytes:
    """What a worker makes of a job: decode, networks, maps drawn, result encoded."""
    request = UpscaleRequest()
    source = results.decode(data, 10**7)
    height, width = source.pixels.shape[:2]
    result = upscaler.upscale(source.pixels, results.upscale_options(request, width, height))
    results.render_maps(result)
    return results.encode(result, request, source)


def main() -> None:
    """Serve stdin until it ends."""
    upscaler = load_upscaler(Settings(), "compact")
    warm_up(upscaler)
    for line in sys.stdin:
        source, target = map(Path, line.split())
        data = source.read_bytes()
        started = time.perf_counter()
        image = upscale(upscaler, data)
        seconds = time.perf_counter() - started
        target.write_bytes(image)
        print(seconds, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
