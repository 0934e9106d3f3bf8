"""The stage of reliability: agreement as a rank, damage in regions, heads that learn it, and the way into a profile."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evaluation.agreement import map_agreement
from models.checkpoint import read_config, save_checkpoint
from models.configs import VISUAL_MODALITIES, M3ESRConfig
from models.network import M3ESR, resize_map
from models.pipeline import Upscaler
from models.requests import UpscaleOptions
from models.routing.reliability import ModalityReliability, ReliabilityConfig
from tests.unit.models.tiny import tiny_network, tiny_upscaler
from training import reliability
from training.denoiser import save
from training.map_cache import MapCache, map_path, pack, see, write_maps
from training.map_damage import DAMAGE, OTHER, damage, damage_region
from training.pairs import PairDataset
from training.reliability import Ranks, ReliabilityData, ReliabilityStage, centre, measure_agreement, merge, report

CONFIG = ReliabilityConfig(width=8, num_blocks=1, token_channels=16, dino_channels=8)
PHOTOGRAPHS = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def folder(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    write_maps(tiny_network(), PairDataset(pairs), folder, 2, PHOTOGRAPHS)
    return folder


@pytest.fixture(scope="module")
def data(pairs, folder):
    return ReliabilityData(PairDataset(pairs), MapCache(folder, 2), PHOTOGRAPHS)


def ranks_of(data) -> Ranks:
    return Ranks(measure_agreement(data, PHOTOGRAPHS))


def test_the_cache_holds_what_the_extractors_see(pairs, data):
    network, dataset = tiny_network(), PairDataset(pairs)
    for part in ("001", "hr"):
        for name, seen in see(network, dataset, 2, part).items():
            kept = data.cache.maps(2, (name,), None if part == "hr" else 1)[name]
            assert kept.shape == seen.shape
            # between the extractor's own values, 8 px apart, both are interpolated
            assert (kept - seen).abs().max() < 0.03, name


def test_a_map_on_disk_keeps_the_extractors_own_values():
    """Not those of the enlargement half a cell away."""
    values = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    maps = {"segmentation": values, "depth": values}
    stored = pack({n: resize_map(m, (64, 64)) for n, m in maps.items()} | {"edge": torch.zeros(1, 3, 64, 64)})
    assert all(np.abs(stored[name] / 255 - values[0].numpy()).mean() < 0.05 for name in maps)


def test_an_interrupted_cache_goes_on(pairs, folder, capsys):
    before = map_path(folder, "dino", "000").stat().st_mtime_ns
    map_path(folder, "edge", "001").unlink()
    write_maps(tiny_network(), PairDataset(pairs), folder, 2, PHOTOGRAPHS)
    assert map_path(folder, "edge", "001").exists()
    assert map_path(folder, "dino", "000").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="maps of other photographs"):
        write_maps(tiny_network(), PairDataset(pairs), folder, 2, [0, 1])


def test_ranks_are_shares_and_ties_count_half():
    ranks = Ranks({"edge": torch.cat([torch.linspace(0, 0.4, 500), torch.full((500,), 0.5)])})
    found = ranks.rank("edge", torch.tensor([[-1.0, 0.2], [0.5, 2.0]]))
    assert found.flatten().tolist() == pytest.approx([0, 0.25, 0.75, 1], abs=0.01)


@pytest.mark.parametrize("name", ["segmentation", "dino"])
@pytest.mark.parametrize("kind", [OTHER, *DAMAGE])
def test_every_kind_damages(name, kind):
    side = 8 if name == "dino" else 128
    generator = torch.Generator().manual_seed(0)
    modality, other = (torch.rand(1, 3, side, side, generator=generator) for _ in range(2))
    damaged = damage(modality, other, name, kind, np.random.default_rng(0))
    assert damaged.shape == modality.shape and (damaged - modality).abs().mean() > 0.02
    if name != "dino":
        assert damaged.min() >= 0 and damaged.max() <= 1


def test_damage_keeps_to_its_region():
    rng = np.random.default_rng(1)
    modality, other = torch.zeros(1, 3, 128, 128), torch.ones(1, 3, 128, 128)
    shares = []
    for _ in range(30):
        changed = damage_region(modality, other, "depth", rng)[0, 0] != 0
        tokens = changed.unfold(0, 16, 16).unfold(1, 16, 16).flatten(2)
        shares.append(float(tokens.any(-1).float().mean()))
    assert 0 < np.mean(shares) < 1 and max(shares) == 1 and min(s for s in shares if s) < 0.5


def test_damage_lowers_agreement(data, monkeypatch):
    stage = ReliabilityStage(data, ranks_of(data), batch_size=4, seed=0)
    means: dict[float, dict[str, float]] = {}
    for share in (0.0, 1.0):
        monkeypatch.setattr(reliability, "DAMAGED_SHARE", share)
        batches = [stage.batch() for _ in range(6)]
        means[share] = {
            name: float(torch.stack([map_agreement(name, b.given[name], b.reference[name]) for b in batches]).mean())
            for name in VISUAL_MODALITIES
        }
    assert all(means[1.0][name] < means[0.0][name] for name in VISUAL_MODALITIES)


def test_heads_learn_to_doubt(data):
    torch.manual_seed(0)
    heads, stage = ModalityReliability(CONFIG), ReliabilityStage(data, ranks_of(data), batch_size=4, seed=0)
    optimizer = torch.optim.Adam(heads.parameters(), lr=1e-2)
    history = []
    for _ in range(40):
        loss = stage.losses(heads)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    assert np.mean(history[-10:]) < 0.9 * np.mean(history[:10])
    heads.centre += 5
    centre(heads, data, PHOTOGRAPHS)
    views = [data.whole(i) for i in PHOTOGRAPHS]
    weights = [heads.offsets(view.lr_image, view.tokens, view.given) for view in views]
    for name in VISUAL_MODALITIES:
        mean = torch.stack([offsets[name] for offsets in weights]).sigmoid().mean()
        assert float(mean.detach()) == pytest.approx(0.5, abs=1e-3)
    lines = report(heads, data, PHOTOGRAPHS, ranks_of(data))
    assert [line.split()[0] for line in lines[1:]] == list(VISUAL_MODALITIES)


def test_heads_go_into_a_profile_and_leave_the_rest_as_it_was(tmp_path, capsys):
    upscaler = tiny_upscaler()
    save(tmp_path, upscaler.network, upscaler.tokenizer)
    (tmp_path / "uncertainty.json").write_text("{}")
    lr_image = np.random.default_rng(0).random((16, 16, 3), dtype=np.float32)
    before = Upscaler.load("compact", checkpoint=tmp_path, with_calibration=False)
    for seed in (0, 1):  # the second time takes the place of the first
        torch.manual_seed(seed)
        heads = ModalityReliability(CONFIG)
        save_checkpoint(tmp_path / reliability.FILE, heads.state_dict(), heads.config, torch.float16)
        merge(tmp_path / reliability.FILE, tmp_path)
    assert "fit" in capsys.readouterr().out
    after = Upscaler.load("compact", checkpoint=tmp_path, with_calibration=False)
    assert read_config(tmp_path / "compact.safetensors", M3ESRConfig).reliability == CONFIG
    kept = before.network.state_dict()
    added = {name: t for name, t in after.network.state_dict().items() if name not in kept}
    assert all(torch.equal(t, after.network.state_dict()[name]) for name, t in kept.items())
    assert set(added) == {f"reliability.{name}" for name in heads.state_dict()}
    assert torch.equal(added["reliability.stem.weight"], heads.stem.weight.half().float())
    maps = [one.upscale(lr_image, UpscaleOptions()).maps["dino"] for one in (before, after)]
    assert not np.array_equal(*maps)


def test_heads_of_other_extractors_are_refused(tmp_path, monkeypatch, capsys):
    upscaler = tiny_upscaler()
    save(tmp_path, upscaler.network, upscaler.tokenizer)
    heads = ModalityReliability(replace(CONFIG, dino_channels=9))
    save_checkpoint(tmp_path / reliability.FILE, heads.state_dict(), heads.config)
    with pytest.raises(ValueError, match="9 DINO channels"):
        merge(tmp_path / reliability.FILE, tmp_path)
    assert read_config(tmp_path / "compact.safetensors", M3ESRConfig).reliability is None
    told = ["--merge", tmp_path / "missing.safetensors", "--into", tmp_path]
    monkeypatch.setattr("sys.argv", ["reliability", *map(str, told)])
    with pytest.raises(SystemExit) as stopped:
        reliability.main()
    assert stopped.value.code == 2 and "missing.safetensors" in capsys.readouterr().err


NO_INIT = ["--only", "edge", "--pairs", "a", "--profile", "b", "--out", "c"]


@pytest.mark.parametrize("arguments", [["--pairs", "a"], ["--merge", "a"], NO_INIT])
def test_half_a_command_is_refused(monkeypatch, capsys, arguments):
    monkeypatch.setattr("sys.argv", ["reliability", *arguments])
    with pytest.raises(SystemExit) as stopped:
        reliability.main()
    assert stopped.value.code == 2 and "needs" in capsys.readouterr().err


def test_the_command_trains_saves_and_merges(pairs, tmp_path, monkeypatch, capsys):
    """And goes on with one head, which leaves the others as they were."""
    upscaler = tiny_upscaler()
    save(tmp_path, upscaler.network, upscaler.tokenizer)
    monkeypatch.setattr(reliability, "NUM_RANKED", 3)
    first, second = tmp_path / "first", tmp_path / "second"
    told = {"pairs": pairs, "profile": tmp_path, "into": tmp_path, "num-steps": 2}
    found = []
    for more in ({"out": first}, {"out": second, "init": first / reliability.FILE, "only": "edge"}):
        given = (str(word) for name, value in (told | more).items() for word in (f"--{name}", value))
        monkeypatch.setattr("sys.argv", ["reliability", *given])
        reliability.main()
        assert "merged into" in capsys.readouterr().out
        network = Upscaler.load("compact", checkpoint=tmp_path).network
        assert isinstance(network, M3ESR) and network.reliability is not None
        found.append(network.reliability.state_dict())
    changed = {name for name, tensor in found[1].items() if not torch.equal(tensor, found[0][name])}
    assert changed and all(name.startswith("heads.edge.") or name == "centre" for name in changed)
