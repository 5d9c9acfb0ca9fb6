"""AdamW along flat tensors."""

from copy import deepcopy

import pytest
import torch

from road_ds.engine.adamw import LayerwiseAdamW, Piece, merged


def test_pieces_of_a_flat_tensor_are_updated_as_tensors_with_a_group_each():
    torch.manual_seed(0)
    parts = [torch.randn(5), torch.randn(8), torch.randn(3)]
    rates = [1.0, 0.25, 1.0]
    flat = torch.cat([*parts, torch.ones(2)]).requires_grad_()
    own = LayerwiseAdamW([{"params": [flat], "lr": 0.1, "weight_decay": 0.3}], betas=(0.8, 0.9))
    own.pieces = {flat: merged(Piece(a, b, rate) for a, b, rate in ((0, 5, 1.0), (5, 13, 0.25), (13, 16, 1.0)))}
    single = [part.clone().requires_grad_() for part in parts]
    groups = [{"params": [p], "lr": 0.1 * rate, "weight_decay": 0.3} for p, rate in zip(single, rates, strict=True)]
    other = torch.optim.AdamW(groups, betas=(0.8, 0.9), foreach=False)
    for _ in range(5):
        flat.grad = torch.randn(18)
        for p, gradient in zip(single, flat.grad.split([5, 8, 3, 2])[:3], strict=True):
            p.grad = gradient.clone()
        own.step()
        other.step()
    assert torch.allclose(flat[:16], torch.cat(single), atol=1e-6)
    assert torch.equal(flat[16:], torch.ones(2)), "padding"
    state = own.state_dict()["state"][0]
    assert set(state) == {"step", "exp_avg", "exp_avg_sq"} and state["step"] == 5
    assert torch.allclose(state["exp_avg"][5:13], other.state[single[1]]["exp_avg"])


def test_its_state_is_torchs():
    """What one saves the other loads."""
    p, q = (torch.ones(4, requires_grad=True) for _ in range(2))
    own, other = LayerwiseAdamW([{"params": [p]}], lr=0.1), torch.optim.AdamW([q], lr=0.1, fused=True)
    own.pieces = {p: [Piece(0, 4, 1.0)]}
    for _ in range(2):
        p.grad, q.grad = torch.arange(4.0), torch.arange(4.0)
        own.step()
        other.step()
        own.load_state_dict(deepcopy(other.state_dict()))
    assert torch.equal(p, q)


def test_a_tensor_without_pieces_is_an_error():
    p = torch.ones(4, requires_grad=True)
    own = LayerwiseAdamW([{"params": [p]}], lr=0.1)
    own.step()
    p.grad = torch.ones(4)
    with pytest.raises(KeyError):
        own.step()


def test_neighbours_of_one_share_are_one_piece():
    assert merged([Piece(0, 2, 1.0), Piece(2, 5, 1.0), Piece(5, 6, 0.5)]) == [Piece(0, 5, 1.0), Piece(5, 6, 0.5)]
