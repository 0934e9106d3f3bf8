"""Products through oneDNN and through torch are the same products."""

import pytest
import torch
import torch.nn.functional as F

from models.denoising.linear import Linear, count_parameters, has_onednn

needs_onednn = pytest.mark.skipif(not has_onednn(torch.float32), reason="no oneDNN for this CPU")


def layer(activation="gelu"):
    torch.manual_seed(0)
    return Linear(24, 40, activation)


def patches():
    return torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))


def by_torch(made, x):
    product = F.linear(x, made.weight, made.bias)
    return F.gelu(product, approximate="tanh") if made.activation == "gelu" else product


@needs_onednn
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_onednn_changes_rounding_only(activation):
    made = layer(activation)
    for x in (patches(), patches()[:, ::2], patches()[0]):
        with torch.no_grad():
            assert made.fits_onednn(x)
            torch.testing.assert_close(made(x), by_torch(made, x), atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(not has_onednn(torch.bfloat16), reason="no bfloat16 in this CPU")
def test_kept_bfloat16_weights_take_what_autocast_would_give_them():
    made = layer().to(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert made.fits_onednn(patches())
        found = made(patches())
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, by_torch(made, patches()), atol=0.02, rtol=0.02)


def test_gradients_come_from_torch():
    made, x = layer(), patches().requires_grad_()
    assert not made.fits_onednn(x)
    made(x).sum().backward()
    expected = torch.autograd.grad(by_torch(made, x).sum(), x)[0]
    assert torch.equal(x.grad, expected)
    assert made.weight.grad.abs().max() > 0


def test_autocast_of_float32_weights_stays_with_torch():
    made = layer()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not made.fits_onednn(patches())
        assert made(patches()).dtype == torch.bfloat16


def test_without_onednn_the_answer_is_torchs(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    made = layer()
    with torch.no_grad():
        assert torch.equal(made(patches()), by_torch(made, patches()))


def test_the_state_dict_is_that_of_a_plain_layer():
    assert list(layer().state_dict()) == ["weight", "bias"]


@needs_onednn
def test_a_packed_layer_gives_the_same_products_and_holds_its_weight_once():
    made, packed = layer(), layer()
    packed.pack()
    packed.pack()  # again changes nothing
    with torch.no_grad():
        assert torch.equal(packed(patches()), made(patches()))
    assert [name for name, _ in packed.named_parameters()] == ["bias"]


@needs_onednn
def test_a_packed_layer_still_answers_where_onednn_does_not():
    made, packed = layer(), layer()
    packed.pack()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(packed(patches()), made(patches()))
    with torch.enable_grad():
        assert torch.equal(packed(patches()), made(patches()))


@needs_onednn
def test_a_packed_weight_still_counts():
    made, packed = layer(), layer()
    packed.pack()
    assert count_parameters(packed) == count_parameters(made) == 24 * 40 + 40
