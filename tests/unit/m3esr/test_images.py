"""The command line with the packages that an image copies and no others: one line says where the missing ones are."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# What each image can do of the verbs that need a package of ours: exit code 0, or 2 and the words.
VERBS = {
    "service": {
        "models list": "models is not part of this image. Run this in the worker's",
        "models verify": "models is not part of this image",
        "models pull quality": "models is not part of this image",
        "models rm quality": "models is not part of this image",
        "profiles": "models is not part of this image",
        "upscale photo.png -o out.png": "worker is not part of this image",
        "work": "worker is not part of this image",
        "bench": "evaluation is not part of this image. Run this from the repository",
    },
    "worker": {
        "models list": None,
        "models verify": "nothing in",
        "profiles": None,
        "serve": "service is not part of this image. Run this in the service's",
        "bench": "evaluation is not part of this image",
    },
}


@pytest.fixture(scope="module", params=VERBS)
def image(request, tmp_path_factory):
    """(name, folder with the packages that its Dockerfile copies)."""
    folder = tmp_path_factory.mktemp(request.param)
    told = (ROOT / "docker" / f"{request.param}.Dockerfile").read_text()
    packages = re.findall(r"^COPY (\w+) \1$", told, re.MULTILINE)
    assert "m3esr" in packages
    for package in packages:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("weights", "__pycache__"))
    (folder / "photo.png").write_bytes((ROOT / "m3esr" / "samples" / "bridge.png").read_bytes())
    return request.param, folder


def test_what_an_image_leaves_out_is_one_line_and_exit_code_two(image):
    name, folder = image
    # -S and a path of its own: what is installed here stays in sight, the repository does not.
    site = [path for path in sys.path if path.endswith("site-packages")]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(folder), *site])}
    env |= {"HOME": str(folder), "M3ESR_MODELS_DIR": str(folder / "none"), "PYTHONDONTWRITEBYTECODE": "1"}
    for verb, words in VERBS[name].items():
        command = [sys.executable, "-S", "-m", "m3esr", *verb.split()]
        told = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)
        if words is None:
            assert (told.returncode, told.stderr) == (0, ""), verb
        else:
            assert told.returncode == 2 and told.stdout == "", f"{verb}: {told.stderr}"
            assert words in told.stderr and told.stderr.strip().count("\n") == 0, verb
