"""Muon against its definition and torch's own optimizers."""

import copy

import pytest
import torch
from torch import nn

from fer.models.convnet import ConvNet
from fer.optim import Muon, orthogonal


@pytest.mark.parametrize("shape", [(64, 20), (20, 64), (7, 7)])
def test_orthogonal_is_nearly_the_orthogonal_factor(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    ours = orthogonal(matrix)
    values = torch.linalg.svdvals(ours)
    assert values.min() > 0.5 and values.max() < 1.3
    assert torch.cosine_similarity(ours.flatten(), (u @ vt).flatten(), dim=0) > 0.95


def test_matrices_move_as_torchs_muon_and_the_others_as_torchs_adamw():
    torch.manual_seed(0)
    ours = nn.Sequential(*(nn.Linear(12, 12) for _ in range(4)))
    theirs = nn.Sequential(*(nn.Linear(12, 12) for _ in range(4)))
    theirs.load_state_dict(ours.state_dict())
    weights, biases = [[getattr(m, kind) for m in theirs] for kind in ("weight", "bias")]
    optimizers = [
        torch.optim.Muon(weights[1:-1], lr=0.02, momentum=0.9, weight_decay=0.1),
        torch.optim.AdamW([weights[0], weights[-1]], lr=1e-3, weight_decay=0.1),
        torch.optim.AdamW(biases, lr=1e-3, weight_decay=0.0),
    ]
    muon = Muon(ours.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1, adam_lr=1e-3)
    for _ in range(3):
        x = torch.randn(40, 12)
        for net, steps in ((ours, [muon]), (theirs, optimizers)):
            net.zero_grad()
            net(x).square().sum().backward()
            for optimizer in steps:
                optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_muon_takes_convolutions():
    net = ConvNet(features=[4, 8, "pool", 8, "global_pool"], head=[], size=16)
    before = [p.clone() for p in net.parameters()]
    muon = Muon(net.parameters(), lr=0.02)
    net(torch.randn(3, 1, 16, 16)).sum().backward()
    muon.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    change = (net.features.conv1_2.weight - before[2]).flatten(1) / 0.02
    assert torch.linalg.svdvals(change).max() < 1.3


def test_adamw_takes_what_is_no_inner_matrix_or_too_large_a_one(catalogue_model):
    def shapes(model, **options):
        muon = Muon(model.parameters(), lr=0.02, **options)
        return [sorted(tuple(p.shape) for p in group["params"]) for group in muon.param_groups]

    assert shapes(nn.Linear(3, 3)) == [[], [(3, 3)], [(3,)]]
    with torch.device("meta"):
        inner, ends, rest = shapes(catalogue_model("vgg13"))
        assert len(inner) == 9 and all(len(shape) == 4 for shape in inner)
        assert ends == [(7, 4096), (64, 1, 3, 3), (4096, 2048), (4096, 4096)]
        inner, ends, rest = shapes(catalogue_model("prelu_cnn"))
    assert len(inner) == 4 and (64, 44, 44) in rest and (1024,) in rest


def test_a_saved_state_goes_on_as_if_it_had_not_stopped():
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 7), nn.Linear(7, 6)) for _ in range(2)]
    whole, torn = (Muon(net.parameters(), lr=0.02) for net in nets)
    x = torch.randn(2, 20, 9)

    def step(net, muon, x):
        net.zero_grad()
        net(x).square().sum().backward()
        muon.step()

    step(nets[0], whole, x[0])
    nets[1].load_state_dict(nets[0].state_dict())
    torn.load_state_dict(copy.deepcopy(whole.state_dict()))
    for net, muon in zip(nets, (whole, torn), strict=True):
        step(net, muon, x[1])
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
