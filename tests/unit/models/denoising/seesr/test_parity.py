"""SeeSR's two networks return what the official code returned, and have the shapes of the published files."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models.denoising.seesr.config import SeeSRConfig
from models.denoising.seesr.networks import Residuals, SeeSRControlNet, SeeSRUNet

FIXTURES = Path(__file__).resolve().parents[4] / "fixtures"
NETWORKS = {"unet": SeeSRUNet, "controlnet": SeeSRControlNet}


def published_values(name):
    return json.loads((FIXTURES / "seesr" / f"{name}_config.json").read_text())


def published_network(name):
    network = NETWORKS[name](SeeSRConfig.from_published(published_values(name)))
    network.load_state_dict(load_file(FIXTURES / "seesr" / f"{name}.safetensors"))
    return network.eval().requires_grad_(False)


def tensors(name):
    return load_file(FIXTURES / "seesr" / f"{name}.safetensors")


def test_every_residual_and_the_sample_equal_the_official_ones():
    inputs, expected = tensors("inputs"), tensors("outputs")
    tokens = inputs["encoder_hidden_states"], inputs["image_encoder_hidden_states"]
    residuals = published_network("controlnet")(
        inputs["sample"], inputs["timestep"], tokens[0], inputs["controlnet_cond"], tokens[1], 0.8
    )
    found = {f"down{k}": value for k, value in enumerate(residuals.down)} | {"mid": residuals.mid}
    official = Residuals(tuple(expected[f"down{k}"] for k in range(len(residuals.down))), expected["mid"])
    found["sample"] = published_network("unet")(inputs["sample"], inputs["timestep"], *tokens, official)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() < 1e-4, name


@pytest.mark.parametrize("name", NETWORKS)
def test_the_full_network_has_the_shapes_of_the_published_file(name):
    published = json.loads(gzip.decompress((FIXTURES / "seesr_full" / f"{name}.json.gz").read_bytes()))
    with torch.device("meta"):
        ours = NETWORKS[name](SeeSRConfig()).state_dict()
    assert {key: list(value.shape) for key, value in ours.items()} == published


def test_a_timestep_of_each_image_equals_one_for_all():
    inputs, unet = tensors("inputs"), published_network("unet")
    tokens = inputs["encoder_hidden_states"], inputs["image_encoder_hidden_states"]
    alone = unet(inputs["sample"], inputs["timestep"], *tokens)
    assert torch.equal(alone, unet(inputs["sample"], inputs["timestep"].expand(2), *tokens))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 12)])
def test_with_silent_image_attention_the_unet_is_stable_diffusions(size):
    """Also where the latent's sides are no multiple of 4, which the official fixture does not show."""
    from diffusers import UNet2DConditionModel

    state = tensors("unet")
    for key, value in state.items():
        if "image_attentions" in key and ".proj_out." in key:
            value.zero_()
    ours = published_network("unet")
    ours.load_state_dict(state)
    values = {k: v for k, v in published_values("unet").items() if not k.startswith("_")}
    values.pop("use_image_cross_attention")
    stock = UNet2DConditionModel(**values).eval()
    stock.load_state_dict({key: value for key, value in state.items() if "image_attentions" not in key})
    torch.manual_seed(0)
    noisy, text, image = torch.randn(1, 4, *size), torch.randn(1, 7, 24), torch.randn(1, 10, 512)
    with torch.no_grad():
        expected = stock(noisy, 500, text).sample
    assert (ours(noisy, torch.tensor(500), text, image) - expected).abs().max() < 1e-5


def test_image_tokens_matter_and_their_order_does_not():
    inputs, unet = tensors("inputs"), published_network("unet")
    image = inputs["image_encoder_hidden_states"]
    arguments = inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"]
    whole = unet(*arguments, image)
    assert torch.allclose(whole, unet(*arguments, image.flip(1)), atol=1e-5)
    assert not torch.allclose(whole, unet(*arguments, image[:, :5]), atol=1e-2)


def test_no_image_token_is_one_of_zeros():
    inputs, unet = tensors("inputs"), published_network("unet")
    arguments = inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"]
    zeros = torch.zeros(2, 1, 512)
    assert torch.equal(unet(*arguments), unet(*arguments, zeros))
    assert torch.allclose(unet(*arguments), unet(*arguments, zeros.expand(2, 9, 512)), atol=1e-5)


def test_a_conditioning_scale_of_zero_steers_nothing():
    inputs = tensors("inputs")
    tokens = inputs["encoder_hidden_states"], inputs["image_encoder_hidden_states"]
    arguments = inputs["sample"], inputs["timestep"]
    residuals = published_network("controlnet")(*arguments, tokens[0], inputs["controlnet_cond"], tokens[1], 0.0)
    unet = published_network("unet")
    assert torch.equal(unet(*arguments, *tokens), unet(*arguments, *tokens, residuals))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_image_cross_attention": False}, "no SeeSR network: use_image_cross_attention is False"),
        ({"use_linear_projection": False}, "use_linear_projection"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"block_out_channels": [16, 32]}, "of one length"),
        ({"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"]}, "AttnDownBlock2D"),
        ({"up_block_types": ["CrossAttnUpBlock2D"] * 3}, "do not mirror"),
    ],
)
def test_a_config_of_another_network_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SeeSRConfig.from_published(published_values("unet") | change)
