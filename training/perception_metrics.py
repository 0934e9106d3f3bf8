"""How well PerceptionNet agrees with the teachers on held-out photographs, and with the truth on held-out
scenes.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from models.modalities.perception import PerceptionNet
from training.pairs import to_batch
from training.scene_cache import HELD_OUT
from training.targets import read_photograph


@torch.inference_mode()
def validate_photographs(network: PerceptionNet, lr_folder: Path, teachers: Path) -> dict[str, float]:
    """The LR photographs of a folder against the teachers' view of the HR photographs of the same name.

    cosine: mean over tokens. agreement: share of pixels with the teacher's class; sure_agreement: where
    the teacher gives its
    class at least 0.7. miou: mean intersection over union over the classes that the teacher shows on at
    least 0.5 % of pixels.
    """
    stems = [Path(name).stem for name in (teachers / "names.txt").read_text().splitlines()]
    features = np.load(teachers / "features.npy", mmap_mode="r")
    segments = np.load(teachers / "segments.npy", mmap_mode="r")
    cosines, confusion, sure = [], 0, []
    for path in sorted(lr_folder.iterdir()):
        row = stems.index(path.stem)
        seen = network(to_batch([read_photograph(path)]))
        target = torch.from_numpy(features[row].astype(np.float32)).permute(2, 0, 1)[None]
        cosines.append(F.cosine_similarity(seen.dino, target, dim=1).mean().item())
        wanted, found = segments[row].argmax(axis=-1), seen.segmentation[0].argmax(dim=0).numpy()
        num = segments.shape[-1]
        confusion = confusion + np.bincount((wanted * num + found).ravel(), minlength=num * num).reshape(num, num)
        sure.append((wanted == found)[segments[row].max(axis=-1) >= 0.7 * 255])
    both = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    shown = confusion.sum(axis=1) >= 0.005 * confusion.sum()
    return {
        "cosine": float(np.mean(cosines)),
        "agreement": float(both.sum() / confusion.sum()),
        "sure_agreement": float(np.concatenate(sure).mean()),
        "miou": float((both / np.maximum(union, 1))[shown].mean()),
    }


@torch.inference_mode()
def validate_depth(network: PerceptionNet, scenes) -> dict[str, float]:
    """Held-out rendered scenes (a SceneData): rank correlation of inverse depth, and error after the best
    scale and shift.

    depth_rank: Spearman's, mean over scenes. depth_error: mean |aligned - true| over the true range (0.25
    = a constant, roughly).
    """
    ranks, errors = [], []
    for i in range(HELD_OUT):
        truth = scenes.depths[i].astype(np.float64).ravel()
        if truth.std() < 1e-3:
            continue
        found = network(to_batch([scenes.lr_images[i, 0]])).depth.double().flatten().numpy()
        ranks.append(spearmanr(found, truth).statistic if found.std() > 1e-9 else 0.0)
        scale, shift = np.linalg.lstsq(np.stack([found, np.ones_like(found)], 1), truth, rcond=None)[0]
        errors.append(np.abs(scale * found + shift - truth).mean() / (np.quantile(truth, 0.99) - truth.min()))
    return {"depth_rank": float(np.mean(ranks)), "depth_error": float(np.mean(errors))}
