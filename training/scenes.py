"""Rendered scenes with exact depth: planes, boxes, spheres and ridges under photograph textures, for the
depth head.

A small ray caster. World axes: x right, y up, z forward; the camera stands at the origin. Rays have unit
length along the
optical axis, so the ray parameter t is the depth itself and 1/t the inverse depth (0 at infinity). Lengths
are in units of
the camera height over the ground.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

FAR = np.inf
RIDGE_SAMPLES = 256


@dataclass(frozen=True)
class Rectangle:
    """A textured flat piece: points origin + a * axis_u + b * axis_v, with |a| <= half_u and |b| <=
    half_v.
    """

    origin: np.ndarray  # (3,)
    axis_u: np.ndarray  # (3,), unit
    axis_v: np.ndarray  # (3,), unit, at a right angle to axis_u
    half_u: float = FAR
    half_v: float = FAR
    skyline: np.ndarray | None = None  # (RIDGE_SAMPLES,) heights b along u: what lies above them is cut away

    def intersect(self, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """rays (..., 3) -> depth (...) with inf for a miss, texture coordinates (..., 2), cosine of
        incidence (...).
        """
        normal = np.cross(self.axis_u, self.axis_v)
        slope = rays @ normal
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = (self.origin @ normal) / slope
            offset = rays * depth[..., None] - self.origin
            uv = np.stack([offset @ self.axis_u, offset @ self.axis_v], axis=-1)
            hit = (depth > 1e-3) & (np.abs(uv[..., 0]) <= self.half_u) & (np.abs(uv[..., 1]) <= self.half_v)
            if self.skyline is not None:
                place = np.nan_to_num((uv[..., 0] / self.half_u + 1) / 2 * (RIDGE_SAMPLES - 1))
                hit &= uv[..., 1] <= np.interp(place, np.arange(RIDGE_SAMPLES), self.skyline)
        cosine = np.abs(slope) / np.linalg.norm(rays, axis=-1)
        return np.where(hit, depth, FAR), uv, cosine


@dataclass(frozen=True)
class Sphere:
    """A textured ball."""

    origin: np.ndarray  # (3,) centre
    radius: float

    def intersect(self, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As Rectangle.intersect; the texture coordinates are arc lengths along longitude and latitude."""
        squared, along = (rays * rays).sum(axis=-1), rays @ self.origin
        inside = along**2 - squared * (self.origin @ self.origin - self.radius**2)
        depth = (along - np.sqrt(np.maximum(inside, 0))) / squared
        hit = (inside > 0) & (depth > 1e-3)
        normal = (rays * depth[..., None] - self.origin) / self.radius
        latitude = np.arcsin(np.clip(normal[..., 1], -1, 1))
        longitude = np.arctan2(normal[..., 0], -normal[..., 2])
        cosine = np.abs((normal * rays).sum(axis=-1)) / np.sqrt(squared)
        return np.where(hit, depth, FAR), np.stack([longitude, latitude], axis=-1) * self.radius, cosine


@dataclass(frozen=True)
class Skin:
    """How a surface looks: which photograph, how large, how bright."""

    texture: int
    size: float  # length that one photograph side covers
    shift: np.ndarray = field(default_factory=lambda: np.zeros(2))
    brightness: float = 1.0


@dataclass(frozen=True)
class Scene:
    """Surfaces with their skins, what is behind them, and the air between."""

    surfaces: Sequence[tuple[Rectangle | Sphere, Skin]]
    pitch: float  # radians, upwards
    roll: float
    focal: float  # in units of half the image side
    sky: np.ndarray  # (2, 3) colours at the zenith and at the horizon, [0, 1]
    sky_texture: int  # -1: the plain gradient
    fog: float  # extinction per unit length
    blur: float  # defocus at infinity when the nearest surface is sharp, in pixels; 0 = all sharp


@dataclass(frozen=True)
class View:
    """A rendered photograph and its truth."""

    image: np.ndarray  # (side, side, 3) float32 in [0, 1]
    inverse_depth: np.ndarray  # (side, side) float32, 1 / camera heights, 0 at infinity


def camera_rays(scene: Scene, side: int) -> np.ndarray:
    """(side, side, 3) ray directions through the pixel centres; 1 along the optical axis."""
    place = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(place / scene.focal, -place / scene.focal)
    x, y = np.cos(scene.roll) * x - np.sin(scene.roll) * y, np.sin(scene.roll) * x + np.cos(scene.roll) * y
    sine, cosine = np.sin(scene.pitch), np.cos(scene.pitch)
    up, forward = np.array([0, cosine, -sine]), np.array([0, sine, cosine])
    return x[..., None] * np.array([1.0, 0, 0]) + y[..., None] * up + forward


class Renderer:
    """Draws scenes with a fixed set of textures; textures and skies (n, s, s, 3) uint8 with s a power of
    two.
    """

    def __init__(self, textures: np.ndarray, skies: np.ndarray | None = None) -> None:
        self._pyramids = [_pyramid(texture) for texture in textures]
        self._skies = [] if skies is None else [sky.astype(np.float32) / 255 for sky in skies]
        self.num_textures, self.num_skies = len(self._pyramids), len(self._skies)

    def render(self, scene: Scene, side: int) -> View:
        """Scene -> View of side x side pixels."""
        rays = camera_rays(scene, side)
        depth = np.full((side, side), FAR)
        nearest = np.full((side, side), -1)
        for number, (surface, _) in enumerate(scene.surfaces):
            candidate = surface.intersect(rays)[0]
            closer = candidate < depth
            depth[closer], nearest[closer] = candidate[closer], number
        image = self._sky(scene, rays)
        for number, (surface, skin) in enumerate(scene.surfaces):
            mask = nearest == number
            if mask.any():
                distance, uv, cosine = surface.intersect(rays[mask])
                pixel = 2 * distance / (scene.focal * side) / np.maximum(cosine, 0.1)
                colour = self._paint(skin, uv, pixel) * (skin.brightness * (0.6 + 0.4 * cosine))[:, None]
                air = np.exp(-scene.fog * distance)[:, None]
                image[mask] = colour * air + scene.sky[1] * (1 - air)
        inverse = np.where(np.isfinite(depth), 1 / depth, 0).astype(np.float32)
        image = np.clip(image, 0, 1).astype(np.float32)
        return View(_defocus(image, inverse, scene.blur) if scene.blur else image, inverse)

    def _paint(self, skin: Skin, uv: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        """uv (n, 2) lengths and pixel (n,) length of a pixel on the surface -> colours (n, 3) from the
        right mip level.
        """
        pyramid = self._pyramids[skin.texture]
        wanted = np.log2(np.maximum(pixel / skin.size * pyramid[0].shape[0], 1))
        levels = np.minimum(wanted.round().astype(int), len(pyramid) - 1)
        place, colour = uv / skin.size + skin.shift, np.empty((len(uv), 3), np.float32)
        for level in np.unique(levels):
            here, texture = levels == level, pyramid[level]
            x, y = np.mod(place[here].T, 2) * texture.shape[0] - 0.5
            # the pyramid holds each photograph mirrored to twice its side, so the texture has no seams
            colour[here] = _sample(texture, x, y)
        return colour

    def _sky(self, scene: Scene, rays: np.ndarray) -> np.ndarray:
        if scene.sky_texture >= 0:
            return cv2.resize(self._skies[scene.sky_texture], rays.shape[1::-1])
        rise = np.clip(rays[..., 1] / np.linalg.norm(rays, axis=-1) * 2, 0, 1)[..., None]
        return (scene.sky[0] * rise + scene.sky[1] * (1 - rise)).astype(np.float32)


def _pyramid(texture: np.ndarray) -> list[np.ndarray]:
    """Mip levels, each mirrored to (2s, 2s, 3) float32 in [0, 1]."""
    levels, level = [], texture.astype(np.float32) / 255
    while level.shape[0] >= 4:
        wide = np.concatenate([level, level[:, ::-1]], axis=1)
        levels.append(np.concatenate([wide, wide[::-1]], axis=0))
        level = cv2.resize(level, (level.shape[1] // 2, level.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return levels


def _sample(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear look-up that wraps around; x, y (n,) in pixels."""
    side = texture.shape[0]
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    a, b = (x - left)[:, None].astype(np.float32), (y - top)[:, None].astype(np.float32)
    left, top, right, bottom = left % side, top % side, (left + 1) % side, (top + 1) % side
    upper = texture[top, left] * (1 - a) + texture[top, right] * a
    lower = texture[bottom, left] * (1 - a) + texture[bottom, right] * a
    return upper * (1 - b) + lower * b


def _defocus(image: np.ndarray, inverse: np.ndarray, blur: float) -> np.ndarray:
    """Blend three blur levels by the distance from the nearest surface, as a lens focused there would."""
    nearest = np.quantile(inverse, 0.98)
    amount = np.clip(1 - inverse / max(nearest, 1e-6), 0, 1)
    amount = cv2.GaussianBlur(amount.astype(np.float32), (0, 0), 1.5)[..., None] * 2
    soft = cv2.GaussianBlur(image, (0, 0), max(blur / 2, 0.3))
    softer = cv2.GaussianBlur(image, (0, 0), max(blur, 0.3))
    near = image * np.clip(1 - amount, 0, 1) + soft * np.clip(1 - np.abs(amount - 1), 0, 1)
    return near + softer * np.clip(amount - 1, 0, 1)
