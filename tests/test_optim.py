"""Muon matches its definition, and torch's optimizers where it delegates to them."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fer.models.convnet import ConvNet
from fer.optim import Average, GramNewtonSchulz, Muon, NewtonSchulz
from fer.training.optimizer_setup import build_optimizer, check_state


@pytest.fixture(params=["fp32", "bf16", "fp16"])
def number_format(request, monkeypatch):
    """A machine that computes in it."""
    monkeypatch.setattr("fer.optim.number_format", lambda device: request.param)
    return request.param


@pytest.mark.parametrize("shape", [(64, 20), (20, 64), (7, 7), (30, 8, 3, 3)])
def test_an_update_is_nearly_the_orthogonal_factor(shape, number_format):
    gradient = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    params = [
        nn.Parameter(torch.zeros(5, 5)),
        *map(nn.Parameter, torch.zeros(3, *shape)),
        nn.Parameter(torch.eye(5)),
    ]
    for p, grad in zip(params[1:-1], gradient, strict=True):
        p.grad = grad
    Muon(params, lr=1.0).step()
    for p, grad in zip(params[1:-1], gradient, strict=True):
        assert_orthogonal_factor(
            -p.detach().flatten(1) / max(1, len(p) / p[0].numel()) ** 0.5, grad.flatten(1)
        )


def assert_orthogonal_factor(ours, matrix):
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(ours)
    assert values.min() > 0.5 and values.max() < 1.3
    assert torch.cosine_similarity(ours.flatten(), (u @ vt).flatten(), dim=0) > 0.95


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-7])
def test_the_gram_matrix_gives_the_same_iterates(smallest):
    """Also of matrices whose singular values span what float32 can tell apart, squared."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(size, 24, generator=generator))[0] for size in (24, 96))
    stack = (u @ torch.diag(torch.linspace(smallest, 1, 24)) @ v.T)[None]
    whole, gram = stack.clone(), stack.clone()
    NewtonSchulz(stack, torch.float32)(whole, 5)
    GramNewtonSchulz(stack)(gram, 5)
    torch.testing.assert_close(gram, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 96])
@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_matrices_of_any_size_are_orthogonalized_in_fp16(rank, scale):
    """A GPU without bf16 computes in it, such as the T4."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, rank, generator=generator) for size in (96, 800))
    stack = scale * (left @ right.T)[None]
    NewtonSchulz(stack, torch.float16)(stack, 5)
    values = torch.linalg.svdvals(stack[0])
    assert 0.5 < values[0] < 1.3
    if rank == 1:
        assert values[1] < 0.1


def test_all_steps_work_in_the_same_buffers(number_format):
    net = nn.Sequential(*(nn.Linear(40, 40) for _ in range(5)))
    muon = Muon(net.parameters(), lr=0.01)
    places = set()
    for _ in range(3):
        net.zero_grad()
        net(torch.randn(9, 40)).square().sum().backward()
        muon.step()
        (workspace,) = muon.workspaces.values()
        places.add(workspace.stack.data_ptr())
    assert len(places) == 1 and len(workspace.stack) == 3


def test_muon_leaves_frozen_layers_and_depthwise_kernels_alone():
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 3)
    )
    muon = Muon(net.parameters(), lr=0.01)
    assert [tuple(p.shape) for p in muon.param_groups[0]["params"]] == [(8, 8, 3, 3)]
    net[2].requires_grad_(False)
    before = net[2].weight.clone()
    net(torch.randn(2, 1, 12, 12)).sum().backward()
    muon.step()
    assert torch.equal(net[2].weight, before) and net[1].weight.grad.any()


def test_a_state_for_cuda_graphs_is_checked_without_a_warning(monkeypatch):
    """torch warns of steps that are not captured, since a copy does not know that it need not."""
    accelerator = SimpleNamespace(type="cuda")
    stream = SimpleNamespace(is_capturing=lambda: False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: accelerator)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda: stream)
    node = {"_target_": "torch.optim.Adam", "lr": 0.1, "capturable": False, "fused": None}
    optimizer = build_optimizer(node, nn.Linear(2, 2), torch.device("cuda", 0))
    assert optimizer.defaults["capturable"] and optimizer.defaults["fused"]
    with warnings.catch_warnings(action="error"):
        check_state(optimizer, {})


def test_adamw_is_unfused_where_torch_has_no_fused_kernels(monkeypatch):
    nets = [nn.Sequential(*(nn.Linear(5, 5) for _ in range(3))) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(4, 5)
    asked = []
    for net, fused in zip(nets, (True, False), strict=True):
        monkeypatch.setattr(
            "fer.optim.has_fused_kernels", lambda device, fused=fused: asked.append(device) or fused
        )
        muon = Muon(net.parameters(), lr=0.01)
        net(x).square().sum().backward()
        muon.step()
    assert asked
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b)


def test_the_average_equals_torchs():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    theirs = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    ours = Average(net, 0.9)
    for _ in range(4):
        with torch.no_grad():
            net[0].weight.add_(torch.randn(4, 3))
        net(torch.randn(8, 3))
        ours.update_parameters(net)
        theirs.update_parameters(net)
    assert ours.n_averaged == theirs.n_averaged == 4
    for key, value in ours.state_dict().items():
        if "num_batches" not in key:
            torch.testing.assert_close(value, theirs.state_dict()[key])


def test_muon_and_adamw_equal_torchs(monkeypatch):
    monkeypatch.setattr("fer.optim.number_format", lambda device: "fp32")
    monkeypatch.setattr(
        torch.Tensor, "bfloat16", torch.Tensor.float
    )  # in which torch's always computes
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
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_muon_takes_convolutions():
    net = ConvNet(features=[4, 8, "pool", 8, "global_pool"], head=[], size=16)
    before = [p.clone() for p in net.parameters()]
    muon = Muon(net.parameters(), lr=0.02)
    net(torch.randn(3, 1, 16, 16)).sum().backward()
    muon.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    change = (net.features.conv1_2.weight - before[2]).flatten(1) / 0.02
    assert torch.linalg.svdvals(change).max() < 1.3


def test_adamw_updates_outer_layers_vectors_and_large_matrices(catalogue_model):
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


def test_a_loaded_state_continues_identically():
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
