"""Random scenes for the ray caster: open ground, streets and rooms, ridges under a sky, close-ups of
slanted surfaces.
"""

from collections.abc import Callable

import numpy as np

from training.scenes import RIDGE_SAMPLES, Rectangle, Renderer, Scene, Skin, Sphere

X, Y, Z = np.eye(3)
FAR_DOWN = 1e4  # ridges reach below the ground, which hides their feet

Surfaces = list[tuple[Rectangle | Sphere, Skin]]
SkinMaker = Callable[[float], Skin]  # size -> a random skin


def sample_scene(rng: np.random.Generator, renderer: Renderer) -> Scene:
    """One random scene; the mixture leans to outdoor views because most photographs at hand are."""
    kind = rng.choice(["ground", "ridges", "room", "close-up"], p=[0.4, 0.25, 0.15, 0.2])
    make_skin = _skin_maker(rng, renderer.num_textures)
    pitch = rng.normal(-0.08, 0.14)
    surfaces: Surfaces = []
    if kind == "close-up":
        surfaces.append((_slanted(rng), make_skin(rng.uniform(0.7, 3))))
        surfaces += _objects(rng, make_skin, int(rng.integers(0, 3)), near=1.2)
        pitch = rng.normal(0, 0.2)
    else:
        surfaces.append((Rectangle(-Y, X, Z), make_skin(rng.uniform(1.5, 8))))
        surfaces += _objects(rng, make_skin, int(rng.integers(0, 7)), near=2.0)
    if kind == "room":
        surfaces += _room(rng, make_skin)
    if kind == "ridges" or (kind == "ground" and rng.random() < 0.3):
        surfaces += _ridges(rng, make_skin)
    horizon = rng.uniform(0.3, 1, 3) * rng.uniform(0.5, 1)
    plain = renderer.num_skies == 0 or rng.random() < 0.4
    return Scene(
        surfaces=surfaces,
        pitch=pitch,
        roll=rng.normal(0, 0.04),
        focal=rng.uniform(1.2, 3.2),
        sky=np.stack([np.clip(horizon * rng.uniform(0.4, 1.1, 3), 0, 1), horizon]),
        sky_texture=-1 if plain else int(rng.integers(renderer.num_skies)),
        fog=float(rng.exponential(0.03)) if rng.random() < 0.5 else 0.0,
        blur=rng.uniform(2, 10) if rng.random() < (0.6 if kind == "close-up" else 0.25) else 0.0,
    )


def _skin_maker(rng: np.random.Generator, num_textures: int) -> SkinMaker:
    def make(size: float) -> Skin:
        return Skin(int(rng.integers(num_textures)), size, rng.random(2) * 2, rng.uniform(0.5, 1.15))

    return make


def _slanted(rng: np.random.Generator) -> Rectangle:
    """An endless plane 1 to 4 ahead whose normal leans away from the viewer by up to about 70 degrees."""
    angle, turn = rng.uniform(0, 1.2), rng.uniform(0, 2 * np.pi)
    normal = np.array([np.sin(angle) * np.cos(turn), np.sin(angle) * np.sin(turn), -np.cos(angle)])
    axis_u = np.cross(normal, [0.3, 0.9, 0.1])
    axis_u /= np.linalg.norm(axis_u)
    return Rectangle(rng.uniform(1, 4) * Z, axis_u, np.cross(normal, axis_u))


def _objects(rng: np.random.Generator, make_skin: SkinMaker, count: int, near: float) -> Surfaces:
    """Boxes, balls and thin upright cards that stand on the ground (y = -1), nearer ones likelier."""
    surfaces: Surfaces = []
    for _ in range(count):
        distance = near * rng.uniform(1, 2.5) ** 2
        centre = np.array([distance * rng.uniform(-0.6, 0.6), -1, distance])
        size = distance * rng.uniform(0.05, 0.3)
        shape = rng.random()
        skin = make_skin(size * rng.uniform(0.8, 3))
        if shape < 0.35:
            surfaces.append((Sphere(centre + size * Y, size), skin))
        elif shape < 0.8:
            half = size * rng.uniform(0.4, 1.8, 3)
            surfaces += [(face, skin) for face in box(centre + half[1] * Y, half, rng.uniform(0, np.pi))]
        else:
            height = size * rng.uniform(1, 6)
            surfaces.append((Rectangle(centre + height * Y, X, Y, size * rng.uniform(0.1, 0.6), height), skin))
    return surfaces


def box(centre: np.ndarray, half: np.ndarray, yaw: float) -> list[Rectangle]:
    """The six faces of a box turned about the vertical; half (3,) half sides along its own x, y, z."""
    side, front = np.array([np.cos(yaw), 0, np.sin(yaw)]), np.array([-np.sin(yaw), 0, np.cos(yaw)])
    axes, faces = (side, Y, front), []
    for k in range(3):
        u, v = (k + 1) % 3, (k + 2) % 3
        for sign in (-1, 1):
            faces.append(Rectangle(centre + sign * half[k] * axes[k], axes[u], axes[v], half[u], half[v]))
    return faces


def _room(rng: np.random.Generator, make_skin: SkinMaker) -> Surfaces:
    """Walls: one across the view, perhaps one or two along it, perhaps a ceiling."""
    yaw = rng.normal(0, 0.35)
    along, across = np.array([np.cos(yaw), 0, np.sin(yaw)]), np.array([-np.sin(yaw), 0, np.cos(yaw)])
    walls: Surfaces = []
    if rng.random() < 0.8:
        walls.append((Rectangle(rng.uniform(3, 12) * across, along, Y), make_skin(rng.uniform(2, 8))))
    for sign in (-1, 1):
        if rng.random() < 0.6:
            walls.append((Rectangle(sign * rng.uniform(1, 5) * along, across, Y), make_skin(rng.uniform(2, 8))))
    if rng.random() < 0.5:
        walls.append((Rectangle(rng.uniform(0.6, 3) * Y, X, Z), make_skin(rng.uniform(2, 8))))
    return walls


def _ridges(rng: np.random.Generator, make_skin: SkinMaker) -> Surfaces:
    """Up to four upright silhouettes, one behind the other, as hills, forests or skylines stand in a
    landscape.
    """
    ridges: Surfaces = []
    for _ in range(rng.integers(1, 5)):
        distance = 5 * rng.uniform(1, 4) ** 2
        rough = rng.normal(size=RIDGE_SAMPLES) * rng.uniform(0.02, 0.3)
        skyline = np.cumsum(rough - rough.mean())
        skyline *= rng.uniform(0.03, 0.4) * distance / (np.abs(skyline).max() + 1e-6)
        skyline += rng.uniform(-0.02, 0.3) * distance
        ridge = Rectangle(distance * Z, X, Y, 2 * distance, FAR_DOWN, skyline)
        ridges.append((ridge, make_skin(distance * rng.uniform(0.2, 1))))
    return ridges
