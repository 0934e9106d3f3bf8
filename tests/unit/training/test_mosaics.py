"""Mosaics: what is made of a photograph, and what is never used."""

import numpy as np
import pytest
from PIL import Image

from training.mosaics import cut_piece, mosaic, read_photographs, recolour


def photograph(seed: int = 0, side: int = 512) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_a_mosaic_is_made_of_four_photographs_that_meet_inside():
    flat = [np.full((512, 512, 3), value, np.uint8) for value in (20, 90, 160, 230)]
    seen = set()
    for seed in range(12):
        image = mosaic(flat, np.random.default_rng(seed))
        assert image.shape == (512, 512, 3)
        corners = [image[0, 0], image[0, -1], image[-1, 0], image[-1, -1]]
        assert all((image[y : y + 128, x : x + 128] == image[y, x]).all() for y in (0, 384) for x in (0, 384))
        seen |= {tuple(int(v) for v in corner) for corner in corners}
    assert len(seen) > 8  # other photographs, and other colours of them


def test_seams_lie_on_no_grid():
    flat = [np.full((512, 512, 3), value, np.uint8) for value in range(0, 250, 10)]
    seams = []
    for seed in range(40):
        top = mosaic(flat, np.random.default_rng(seed))[0].astype(int)
        seams += np.flatnonzero(np.diff(top, axis=0).any(-1)).tolist()
    assert len({(seam + 1) % 8 for seam in seams}) == 8


def test_a_piece_is_a_part_of_the_photograph_shrunk_or_as_it_is():
    """Shrunk noise has less contrast; a piece as it is is found in the photograph, turned or mirrored."""
    image, kept, shrunk = photograph(), 0, 0
    turned = [np.rot90(view, k) for view in (image, image[:, ::-1]) for k in range(4)]
    for seed in range(30):
        piece = cut_piece(image, (200, 240), np.random.default_rng(seed))
        assert piece.shape == (200, 240, 3)
        if float(piece.std()) < 0.97 * float(image.std()):
            shrunk += 1
            continue
        starts = [np.argwhere((view[:-1, :-1] == piece[0, 0]).all(-1)) for view in turned]
        assert any(
            np.array_equal(view[y : y + 200, x : x + 240], piece)
            for view, found in zip(turned, starts, strict=True)
            for y, x in found
        )
        kept += 1
    assert kept > 5 and shrunk > 5


def test_colours_change_and_structure_stays():
    image, changed = np.sort(photograph(side=16), axis=0), 0
    for seed in range(20):
        other = recolour(image, np.random.default_rng(seed))
        changed += not np.array_equal(other, image)
        assert (np.diff(other.astype(int), axis=0) >= 0).all()  # each channel keeps the order of its values
    assert 4 < changed < 16


def test_a_photograph_too_small_for_its_piece_is_refused():
    with pytest.raises(ValueError, match="smaller than the piece"):
        cut_piece(photograph(side=64), (128, 40), np.random.default_rng(0))


def test_what_is_held_out_is_not_read(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(photograph(ord(name[0]), 8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photograph")
    read = read_photographs(tmp_path, {"b.png"}, side=8)
    assert len(read) == 1 and np.array_equal(read[0], photograph(ord("a"), 8))
    with pytest.raises(FileNotFoundError, match="no photographs"):
        read_photographs(tmp_path, {"a.png", "b.png"}, side=8)
