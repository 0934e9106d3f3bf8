"""The ray caster against closed forms."""

import numpy as np
import pytest

from training.scene_sampling import box, sample_scene
from training.scenes import Rectangle, Renderer, Scene, Skin, Sphere, camera_rays

X, Y, Z = np.eye(3)
SKY = np.array([[0.2, 0.4, 0.9], [0.7, 0.8, 0.9]])


@pytest.fixture(scope="module")
def renderer():
    rng = np.random.default_rng(0)
    return Renderer(rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8), np.full((1, 16, 16, 3), 200, np.uint8))


def scene_of(*surfaces, pitch=0.0, roll=0.0, focal=2.0, **rest):
    options = {"sky": SKY, "sky_texture": -1, "fog": 0.0, "blur": 0.0, **rest}
    return Scene([(s, Skin(0, 1.0)) for s in surfaces], pitch, roll, focal, **options)


def test_a_wall_across_the_view_has_one_depth(renderer):
    view = renderer.render(scene_of(Rectangle(4 * Z, X, Y)), 16)
    assert np.allclose(view.inverse_depth, 1 / 4)


def test_the_ground_gets_closer_linearly_in_inverse_depth(renderer):
    view = renderer.render(scene_of(Rectangle(-Y, X, Z)), 32)
    rows = ((np.arange(32) + 0.5) / 32 * 2 - 1) / 2.0  # tangent of the angle below the horizon
    assert np.allclose(view.inverse_depth, np.maximum(rows, 0)[:, None], atol=1e-6)


def test_a_raised_camera_sees_the_horizon_lower(renderer):
    view = renderer.render(scene_of(Rectangle(-Y, X, Z), pitch=0.2), 64)
    horizon = (view.inverse_depth[:, 0] == 0).sum()
    assert horizon == round(32 + 32 * 2.0 * np.tan(0.2))


def test_a_sphere_is_where_geometry_says(renderer):
    scene = scene_of(Sphere(5 * Z, 1.0))
    rays = camera_rays(scene, 33)
    found = renderer.render(scene, 33).inverse_depth
    squared = (rays**2).sum(-1)
    discriminant = 25 - 24 * squared
    true = np.where(discriminant > 0, squared / (5 - np.sqrt(np.maximum(discriminant, 0))), 0)
    assert np.allclose(found, true, atol=1e-6)
    assert found[16, 16] == pytest.approx(1 / 4)


def test_the_nearer_surface_hides_the_farther_in_either_order(renderer):
    near, far = Rectangle(2 * Z, X, Y, 0.2, 0.2), Rectangle(6 * Z, X, Y)
    first, second = (renderer.render(scene_of(*pair), 16).inverse_depth for pair in ((near, far), (far, near)))
    assert np.array_equal(first, second)
    assert first[8, 8] == pytest.approx(1 / 2)
    assert first[0, 0] == pytest.approx(1 / 6)


def test_a_box_shows_its_front_at_its_distance(renderer):
    view = renderer.render(scene_of(*box(5 * Z, np.array([0.5, 0.5, 1.0]), yaw=0.0)), 17)
    assert view.inverse_depth[8, 8] == pytest.approx(1 / 4)
    assert view.inverse_depth[0, 0] == 0


def test_a_skyline_cuts_what_lies_above_it(renderer):
    ridge = Rectangle(10 * Z, X, Y, 20.0, 1e4, np.zeros(256))
    view = renderer.render(scene_of(ridge), 16)
    assert (view.inverse_depth[:8] == 0).all()
    assert np.allclose(view.inverse_depth[8:], 1 / 10)


def test_fog_takes_far_things_to_the_horizon_colour(renderer):
    image = renderer.render(scene_of(Rectangle(50 * Z, X, Y), fog=1.0), 8).image
    assert np.allclose(image, SKY[1], atol=1e-4)


def test_a_sky_photograph_fills_what_no_surface_covers(renderer):
    image = renderer.render(scene_of(sky_texture=0), 8).image
    assert np.allclose(image, 200 / 255, atol=1e-4)


def test_random_scenes_are_in_range_and_repeat_by_seed(renderer):
    for seed in range(6):
        first, second = (renderer.render(sample_scene(np.random.default_rng(seed), renderer), 32) for _ in range(2))
        assert np.array_equal(first.image, second.image)
        assert first.image.min() >= 0
        assert first.image.max() <= 1
        assert np.isfinite(first.inverse_depth).all()
        assert first.inverse_depth.max() > 0
