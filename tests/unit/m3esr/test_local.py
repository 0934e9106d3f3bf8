"""`m3esr upscale`: where results go, and what they hold."""

import io

import numpy as np
import pytest
from PIL import Image

from jobs import Settings, UpscaleRequest
from m3esr import local
from m3esr.errors import UserError
from tests.fakes import picture
from tests.unit.worker.fakes import FakeUpscaler


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for path in paths:
        path.write_bytes(picture(image_format="PNG" if path.suffix == ".png" else "JPEG"))
    return paths


def test_one_input_goes_to_the_file_named(images, tmp_path):
    plans = local.make_plan(images[:1], tmp_path / "out.webp", tmp_path / "maps", "webp")
    assert plans == [local.Plan(images[0], tmp_path / "out.webp", tmp_path / "maps")]


def test_several_inputs_go_into_a_folder_under_their_own_names(images, tmp_path):
    plans = local.make_plan(images, tmp_path / "out", tmp_path / "maps", "jpeg")
    assert [plan.target for plan in plans] == [tmp_path / "out/a.jpg", tmp_path / "out/b.jpg"]
    assert [plan.maps_folder for plan in plans] == [tmp_path / "maps/a", tmp_path / "maps/b"]


def test_inputs_of_one_name_are_refused_before_anything_is_written(images, tmp_path):
    twin = tmp_path / "sub" / "a.jpg"
    twin.parent.mkdir()
    twin.write_bytes(b"x")
    with pytest.raises(UserError, match="would both become"):
        local.make_plan([images[0], twin], tmp_path / "out", None, "png")


def test_an_output_over_its_own_input_is_refused(images):
    with pytest.raises(UserError, match="overwrite its own input"):
        local.make_plan(images[:1], images[0], None, "png")


@pytest.mark.parametrize(
    ("name", "asked", "chosen"), [("x.JPG", None, "jpeg"), ("x.tif", None, "tiff"), ("x.png", "webp", "webp")]
)
def test_the_format_follows_the_suffix_unless_asked(tmp_path, name, asked, chosen):
    assert local.choose_format(tmp_path / name, asked, is_folder=False) == chosen


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(UserError, match="unknown suffix"):
        local.choose_format(tmp_path / "x.gif", None, is_folder=False)


def test_result_and_maps_are_written(images, tmp_path):
    plan = local.Plan(images[0], tmp_path / "out" / "a.png", tmp_path / "maps")
    told = []
    written = local.upscale_file(
        plan, UpscaleRequest(scale=2), FakeUpscaler(), Settings(), lambda event: told.append(event.fraction)
    )
    assert Image.open(io.BytesIO(plan.target.read_bytes())).size == (32, 24)
    assert told[-1] == 1.0
    assert {path.name for path in written} == {"a.png"} | {
        f"{name}{suffix}"
        for name in ("segmentation", "depth", "edge", "dino", "uncertainty")
        for suffix in (".png", ".npy")
    }
    assert np.load(io.BytesIO((tmp_path / "maps/depth.npy").read_bytes())).dtype == np.float32


def test_a_file_that_is_no_image_is_told_by_its_name(tmp_path):
    path = tmp_path / "text.png"
    path.write_bytes(b"hello")
    plan = local.Plan(path, tmp_path / "out.png", None)
    with pytest.raises(UserError, match=r"text\.png: .*not a readable image"):
        local.upscale_file(plan, UpscaleRequest(), FakeUpscaler(), Settings(), lambda event: None)
    assert not plan.target.exists()
