"""What the denoiser promises beyond DiT4SR: any grid, the fused group, and a start from nothing."""

import pytest
import torch

from models.denoising.config import DenoiserConfig
from models.denoising.transformer import DiffusionTransformer
from tests.unit.models.denoising.published import published_inputs, published_network, tensors

TINY = DenoiserConfig(
    sample_size=16,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=3,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=6,
    pooled_projection_dim=5,
    pos_embed_max_size=12,
    dual_attention_layers=(0, 2),
    fused=True,
)


def tiny_network(seed=0):
    torch.manual_seed(seed)
    return DiffusionTransformer(TINY)


def tiny_inputs(height=10, width=6, batch=2):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    noisy, lr = draw(batch, 4, height, width), draw(batch, 4, height, width)
    return [noisy, lr, draw(batch, 7, 6), draw(batch, 5), torch.rand(batch, generator=generator) * 1000]


@pytest.mark.parametrize(("height", "width"), [(10, 6), (2, 2), (2, 24), (24, 22), (9, 6), (1, 1), (11, 23)])
def test_any_grid_works_odd_sides_too(height, width):
    with torch.no_grad():
        assert tiny_network()(*tiny_inputs(height, width)).shape == (2, 4, height, width)


def test_an_lr_patch_speaks_to_its_own_place_and_its_eight_neighbours():
    feed_forward = tiny_network().transformer_blocks[0].ff
    hidden = torch.zeros(1, 4 * 7, 64)
    hidden[0, 2 * 7 + 5] = 1.0  # row 2, column 5 of a grid 4 high and 7 wide
    with torch.no_grad():
        heard = feed_forward.injection(hidden, (4, 7)) - feed_forward.injection(0 * hidden, (4, 7))
    places = heard.abs().sum(-1).unflatten(1, (4, 7))[0].nonzero().tolist()
    assert places == [[row, column] for row in (1, 2, 3) for column in (4, 5, 6)]


def test_the_lr_reaches_the_velocity_at_its_own_rows_and_columns():
    network = tiny_network()
    network.reset_for_training()
    torch.nn.init.xavier_uniform_(network.proj_out.weight)
    for block in network.transformer_blocks:
        block.norm1.linear.bias.data[5 * 16 : 6 * 16] = 1.0  # opens only the MLP's gate
        block.ff.control_conv.weight.data[:, :, 0, 1] = 1.0  # listens also to the patch above
    noisy, lr, *rest = tiny_inputs(8, 14)
    changed = lr.clone()
    changed[..., 2:4, 6:8] += 1.0  # the patch in row 1, column 3
    with torch.no_grad():
        difference = (network(noisy, changed, *rest) - network(noisy, lr, *rest)).abs().amax((0, 1))
    patches = torch.nn.functional.max_pool2d(difference[None], 2)[0]
    assert (patches > 1e-4).nonzero().tolist() == [[1, 3], [2, 3]]


def test_an_odd_latent_is_read_as_if_its_edge_went_on():
    network, inputs = tiny_network(), tiny_inputs(9, 5)
    even = [torch.nn.functional.pad(latent, (0, 1, 0, 1), mode="replicate") for latent in inputs[:2]]
    with torch.no_grad():
        assert torch.equal(network(*inputs), network(*even, *inputs[2:])[..., :9, :5])


@pytest.mark.parametrize(("height", "width"), [(26, 6), (25, 6)])
def test_a_latent_that_does_not_fit_the_position_table_is_refused(height, width):
    with pytest.raises(ValueError, match="exceed the 12 x 12"):
        tiny_network()(*tiny_inputs(height, width))


@pytest.mark.parametrize("side", [6, 7, 12, 40])
def test_a_position_table_cut_to_its_centre_changes_no_digit(side):
    network, inputs = tiny_network(), tiny_inputs(11, 6)
    with torch.no_grad():
        expected = network(*inputs)
        network.pos_embed.keep_centre(side)
        assert torch.equal(network(*inputs), expected)
    assert network.pos_embed.pos_embed.shape[1] == min(12, side + side % 2) ** 2


@pytest.mark.parametrize("variant", ["r1", "orig"])
def test_what_is_dropped_is_exactly_what_no_output_depends_on(variant):
    network, inputs = published_network("a", variant=variant), published_inputs("a")
    outcome = network(*inputs)
    outcome.square().sum().backward()
    unread = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    before = set(dict(network.named_parameters()))
    network.drop_dead_weights()
    assert before - set(dict(network.named_parameters())) == unread
    assert torch.equal(network(*inputs), outcome)


def test_latents_of_different_size_are_refused():
    inputs = tiny_inputs(10, 6)
    inputs[1] = inputs[1][..., :4]
    with pytest.raises(ValueError, match="same grid"):
        tiny_network()(*inputs)


def test_the_default_position_is_the_centre_of_the_table():
    network, inputs = tiny_network(), tiny_inputs(10, 6)  # 5 x 3 tokens in a table of 12 x 12
    with torch.no_grad():
        assert torch.equal(network(*inputs), network(*inputs, position_offset=(3, 4)))
        assert not torch.equal(network(*inputs), network(*inputs, position_offset=(0, 0)))
        with pytest.raises(ValueError, match="outside"):
            network(*inputs, position_offset=(8, 0))


def test_a_crop_keeps_the_positions_of_the_whole():
    network, latent = tiny_network(), tiny_inputs(16, 16)[1]
    with torch.no_grad():
        whole = network.embed_latent(latent, position_offset=(0, 0)).unflatten(1, (8, 8))
        crop = network.embed_latent(latent[..., 4:10, 6:16], position_offset=(2, 3)).unflatten(1, (3, 5))
    torch.testing.assert_close(crop, whole[:, 2:5, 3:8])


def test_fused_tokens_change_the_velocity():
    network, inputs = tiny_network(), tiny_inputs()
    with torch.no_grad():
        fused = network.embed_latent(inputs[1])
        assert not torch.allclose(network(*inputs), network(*inputs, fused_tokens=fused), atol=1e-4)


@pytest.mark.parametrize("variant", ["r1", "orig"])
def test_started_from_control_the_fused_group_behaves_like_the_lr_group(variant):
    network, inputs = published_network("a", variant=variant, fused=True), published_inputs("a")
    network.init_fused_from_control()
    streams = {}
    with torch.no_grad():
        network(*inputs, fused_tokens=network.embed_latent(inputs[1]), record=streams)
    for i in range(2):
        torch.testing.assert_close(streams[f"block{i}.fused"], streams[f"block{i}.control"])


def test_a_key_that_was_never_trained_is_not_copied():
    network = published_network("a", variant="orig", fused=True)
    network.init_fused_from_control()
    attention = network.transformer_blocks[0].attn
    assert torch.equal(attention.to_k_fused.weight, torch.eye(32))
    assert torch.equal(attention.to_v_fused.weight, attention.to_v_control.weight)


def test_gradients_reach_every_fused_parameter_and_the_fused_tokens():
    network, inputs = tiny_network(), tiny_inputs()
    fused = network.embed_latent(inputs[1]).detach().requires_grad_()
    network(*inputs, fused_tokens=fused).square().mean().backward()
    parameters = {name: p for name, p in network.named_parameters() if "_fused." in name}
    assert len(parameters) > 0
    assert [name for name, p in parameters.items() if p.grad is None or not p.grad.abs().max() > 0] == []
    assert fused.grad.abs().max() > 0


@pytest.mark.parametrize("fused_shape", [(2, 14, 16), (2, 15, 8)])
def test_fused_tokens_that_are_not_one_per_patch_are_refused(fused_shape):
    with pytest.raises(ValueError, match="one per patch"):
        tiny_network()(*tiny_inputs(), fused_tokens=torch.zeros(fused_shape))


def test_fused_tokens_need_fused_parameters():
    with pytest.raises(ValueError, match="fused=True"):
        published_network("a")(*published_inputs("a"), fused_tokens=torch.zeros(2, 36, 32))


def test_a_network_reset_for_training_starts_at_zero_velocity_and_can_learn():
    network, inputs = tiny_network(), tiny_inputs()
    network.reset_for_training()
    fused = network.embed_latent(inputs[1])
    streams = {}
    velocity = network(*inputs, fused_tokens=fused, record=streams)
    assert torch.equal(velocity, torch.zeros(2, 4, 10, 6))
    assert torch.equal(streams["block2.image"], streams["embed.image"])
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    target = inputs[0] - inputs[1]
    losses = []
    for _ in range(40):
        loss = (network(*inputs, fused_tokens=network.embed_latent(inputs[1])) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_reset_for_training_reads_lr_patches_like_image_patches():
    network = tiny_network()
    network.reset_for_training()
    attention = network.transformer_blocks[0].attn
    patches = torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name in ("to_q", "to_k", "to_v"):
            image = getattr(attention, name)(patches)
            for group in ("control", "fused"):
                torch.testing.assert_close(attention.run_stack(patches, (name, f"{name}_{group}")), image)


@pytest.mark.parametrize("variant", ["r1", "orig"])
@pytest.mark.parametrize("case", ["a", "c"])
def test_merged_projections_change_rounding_only(case, variant):
    network, inputs = published_network(case, variant=variant), published_inputs(case)
    with torch.no_grad():
        network.drop_dead_weights()
        network.merge_projections()
        sample = network(*inputs)
    assert (sample - tensors(case, f"outputs_{variant}")["sample"]).abs().max() < 1e-4
    assert not any("to_q" in name or "add_v" in name for name in network.state_dict())


def test_merged_projections_serve_the_fused_group_too():
    network, inputs = tiny_network(), tiny_inputs()
    with torch.no_grad():
        fused = network.embed_latent(inputs[1])
        expected = network(*inputs, fused_tokens=fused)
        network.merge_projections()
        torch.testing.assert_close(network(*inputs, fused_tokens=fused), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", ["r1", "orig"])
def test_what_a_cpu_is_prepared_with_changes_rounding_only(variant):
    network, inputs = published_network("a", variant=variant), published_inputs("a")
    with torch.no_grad():
        network.drop_dead_weights()
        network.merge_projections()
        network.pack_for_cpu()
        sample = network(*inputs)
    assert (sample - tensors("a", f"outputs_{variant}")["sample"]).abs().max() < 1e-4


def test_every_stream_keeps_the_features_of_a_token_side_by_side():
    network, inputs, streams = tiny_network(), tiny_inputs(), {}
    with torch.no_grad():
        network(*inputs, record=streams)
    assert streams and all(stream.is_contiguous() for stream in streams.values())


def test_inference_and_training_compute_the_same():
    network, inputs = tiny_network(), tiny_inputs()
    with torch.no_grad():
        expected = network(*inputs)
    torch.testing.assert_close(network(*inputs).detach(), expected, atol=1e-5, rtol=1e-5)


def test_mixed_precision_trains():
    network, inputs = tiny_network(), tiny_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        velocity = network(*inputs, fused_tokens=network.embed_latent(inputs[1]))
    velocity.float().square().mean().backward()
    with torch.no_grad():
        exact = network(*inputs, fused_tokens=network.embed_latent(inputs[1]))
    assert (velocity - exact).abs().max() < 0.05 * exact.abs().max()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


def test_half_precision_weights_give_half_precision_velocity():
    network, inputs = tiny_network().to(torch.bfloat16), tiny_inputs()
    with torch.no_grad():
        assert network(*[x.to(torch.bfloat16) for x in inputs]).dtype == torch.bfloat16


def test_the_time_embedding_tells_timesteps_apart_and_knows_no_text():
    embedding = tiny_network().time_embedding(torch.tensor([0.0, 500.0, 500.5, 1000.0]))
    assert embedding.shape == (4, 16)
    assert torch.cdist(embedding, embedding).fill_diagonal_(1).min() > 1e-4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"attention_head_dim": 3}, "multiple of 4"),
        ({"qk_norm": "layer_norm"}, "qk_norm"),
        ({"variant": "r2"}, "variant"),
        ({"dual_attention_layers": (3,)}, "outside the 3 layers"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change, reason):
    values = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__}
    with pytest.raises(ValueError, match=reason):
        DenoiserConfig(**values | change)


def test_a_published_config_whose_text_width_differs_is_refused():
    values = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__} | {"_class_name": "any"}
    assert DenoiserConfig.from_published(values | {"caption_projection_dim": 16}) == TINY
    with pytest.raises(ValueError, match="caption_projection_dim 32"):
        DenoiserConfig.from_published(values | {"caption_projection_dim": 32})
