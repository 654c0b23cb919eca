"""Optimizers that torch lacks; torch's own are named by their `_target_`. Of parameters they know shapes and order, no
names or networks; how rates change over time stays out.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

Rate = Annotated[float, Gt(0)]
LARGEST = 512  # of a matrix's shorter side: 4096×4096 takes 2 TFLOP to orthogonalize, vgg13's step of 128 faces 0.4


class Muon(torch.optim.AdamW):
    """Momentum made orthogonal (Jordan et al. 2024) for the inner layers, a convolution's weights taken as a matrix of
    filters × the rest; AdamW for the first and the last layer, large dense ones, biases, norms and PReLU's slopes.
    torch.optim.Muon takes 2-D parameters only.

    lr: of the matrices, whose change has singular values near 1. adam_lr: of the others; both follow the schedule.
    weight_decay: decoupled, of the layers' weights.
    """

    def __init__(
        self,
        params,
        *,
        lr: Rate,
        momentum: Annotated[float, Ge(0), Lt(1)] = 0.95,
        weight_decay: Annotated[float, Ge(0)] = 0.0,
        adam_lr: Rate = 1e-3,
    ):
        params = list(params)
        weights = [p for p in params if p.ndim in (2, 4)]
        inner = [p for p in weights[1:-1] if min(p.flatten(1).shape) <= LARGEST]
        others = [p for p in weights if all(p is not q for q in inner)]
        groups = [
            {"params": inner, "lr": lr, "momentum": momentum},
            {"params": others, "lr": adam_lr},
            {"params": [p for p in params if p.ndim not in (2, 4)], "lr": adam_lr, "weight_decay": 0.0},
        ]
        super().__init__(groups, weight_decay=weight_decay, fused=True)

    def __setstate__(self, state: dict) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # Adam's own looks for step counts, which matrices have not

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # nobody has a closure
        inner, *others = self.param_groups
        for p in inner["params"]:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - inner["momentum"])
            change = orthogonal(p.grad.lerp(momentum, inner["momentum"]).flatten(1)).view(p.shape)
            p.mul_(1 - inner["lr"] * inner["weight_decay"])
            p.sub_(change, alpha=inner["lr"] * max(1, len(p) / (p.numel() / len(p))) ** 0.5)
        self.param_groups = others
        super().step()
        self.param_groups = [inner, *others]


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly U Vᵀ of matrix = U S Vᵀ (float m×n): singular values between 0.7 and 1.2, by five Newton-Schulz steps with
    the coefficients of Jordan et al. 2024, in bf16 as published."""
    if len(matrix) > matrix.shape[1]:
        return orthogonal(matrix.T).T
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.to(matrix.dtype)
