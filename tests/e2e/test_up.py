"""The whole product: `m3esr up --no-demo`, one photograph through the API, with the real networks."""

import io
import os
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m3esr import Client
from tests.conftest import free_port

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 180


@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_a_photograph_comes_back_four_times_larger_with_its_maps(tmp_path):
    port, log = free_port(), tmp_path / "up.log"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("M3ESR_")}
    env = {**clean, "PYTHONPATH": str(ROOT), "M3ESR_PORT": str(port), "M3ESR_VAR": str(tmp_path / "var")}
    with log.open("wb") as output:
        command = [sys.executable, "-m", "m3esr", "up", "--no-demo"]
        up = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while "Ctrl-C ends it." not in log.read_text():
            assert up.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        check_a_job(f"http://127.0.0.1:{port}")
        up.send_signal(signal.SIGTERM)
        assert up.wait(timeout=10) == 0
    finally:
        if up.poll() is None:
            up.kill()
            up.wait()


def check_a_job(url):
    """One job through the API at `url`: its picture, its maps, its record."""
    sample = files("m3esr").joinpath("samples", "bridge.png").read_bytes()
    with Client(url, trust_env=False) as client:
        job = client.wait(client.submit(sample, filename="bridge.png"), timeout_seconds=WAIT_SECONDS)
        sr_image = np.asarray(Image.open(io.BytesIO(client.result(job))).convert("RGB"), dtype=np.float32)
        values = {name: np.load(io.BytesIO(data)) for name, data in client.maps(job, as_values=True).items()}
    lr_image = Image.open(io.BytesIO(sample))
    assert sr_image.shape == (512, 512, 3)
    # The picture is of the same scene: shrunk back it is near the input, noise apart.
    small = np.asarray(Image.fromarray(sr_image.astype(np.uint8)).resize((128, 128), Image.Resampling.BOX))
    difference = small.astype(np.float32) - np.asarray(lr_image.convert("RGB"), dtype=np.float32)
    assert abs(difference.mean()) < 4
    assert np.abs(difference).mean() < 16
    assert set(values) == {"segmentation", "depth", "edge", "dino", "uncertainty", "uncertainty_raw"}
    for name, grid in values.items():
        assert grid.shape == (32, 32) and grid.min() >= 0, name
        assert name.startswith("uncertainty") or grid.max() <= 1, name
    body = job.body
    assert body["model"]["profile"] == "compact" and len(body["model"]["sha256"]) == 64
    assert body["fusion"] == "trained"
    assert body["trust"]["lr_consistency_psnr"] > 15
    assert len(body["temperatures"]["sigma"]) >= 1
    assert all(0 < tau < 1 for name, row in body["temperatures"].items() if name != "sigma" for tau in row)
