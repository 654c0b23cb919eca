"""Optimizers that torch lacks, which see parameters only; torch's own are named by their
`_target_`.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.swa_utils import AveragedModel

from fer.runtime import has_fused_kernels, number_format

Rate = Annotated[float, Gt(0)]
# Shorter side of a matrix: to orthogonalize 4096×4096 takes 2 TFLOP, a step of vgg13 on 128 faces
# 0.4.
LARGEST = 512
BETAS = (0.9, 0.999)
EPS = 1e-8
# Newton-Schulz iteration x ← a x + b (x xᵀ) x + c (x xᵀ)² x, coefficients of Jordan et al. 2024.
A, B, C = 3.4445, -4.7750, 2.0315


def skip_dynamo() -> None:
    """Keep torch's optimizers from importing torch._dynamo, which takes a second or two, at their
    first call.

    They import it to stay out of compiled graphs, which no optimizer is part of here. The step of
    torch's own optimizers imports it all the same.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if plain is not None:
            plain.__dynamo_disable = plain


skip_dynamo()


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal (Jordan et al. 2024) for the inner layers; AdamW for everything
    else.

    A convolution's weights count as a matrix of filters × the rest. AdamW takes the first and the
    last layer, dense layers with more than 512 units on either side, depthwise kernels, biases,
    norms and PReLU's slopes. torch.optim.Muon takes 2-D parameters only.

    lr: of the matrices, whose change has singular values near 1. adam_lr: of all other parameters.
    Both follow the schedule. weight_decay: decoupled, on the layers' weights. iterations: of
    Newton-Schulz, fewer are faster and less exact.
    """

    capturable = True  # in a CUDA graph, with rates that are tensors

    def __init__(
        self,
        params,
        *,
        lr: Rate,
        momentum: Annotated[float, Ge(0), Lt(1)] = 0.95,
        weight_decay: Annotated[float, Ge(0)] = 0.0,
        adam_lr: Rate = 1e-3,
        iterations: Annotated[int, Ge(1), Lt(100)] = 5,
    ):
        params = list(params)
        weights = [p for p in params if p.ndim in (2, 4)]
        inner = [p for p in weights[1:-1] if is_matrix(p)]
        chosen = {id(p) for p in inner}
        others = [p for p in weights if id(p) not in chosen]
        vectors = [p for p in params if p.ndim not in (2, 4)]
        groups = [
            {"params": inner, "lr": lr, "momentum": momentum, "iterations": iterations},
            {"params": others, "lr": adam_lr},
            {"params": vectors, "lr": adam_lr, "weight_decay": 0.0},
        ]
        super().__init__(groups, {"weight_decay": weight_decay})
        self.workspaces: dict[tuple, Workspace] = {}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # takes no closure
        matrices, *others = self.param_groups
        for params in equal_shapes(matrices["params"]):
            self.step_matrices(matrices, params)
        for group in others:
            self.step_adamw(group)

    def step_matrices(self, group: dict, params: list[Tensor]) -> None:
        """Update all matrices of one shape together."""
        key = (params[0].shape, len(params), params[0].device)
        if key not in self.workspaces:
            self.workspaces[key] = Workspace(params)
        workspace = self.workspaces[key]
        grads = [p.grad for p in params if p.grad is not None]
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in params]

        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        torch._foreach_copy_(workspace.changes, grads)
        torch._foreach_lerp_(workspace.changes, momenta, group["momentum"])  # Nesterov's
        workspace.orthogonalize(group["iterations"])

        rows, columns = workspace.stack.shape[1:]
        workspace.stack.mul_(group["lr"] * max(1, rows / columns) ** 0.5)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(params, workspace.changes)

    def step_adamw(self, group: dict) -> None:
        """torch's AdamW on the group's parameters that have a gradient."""
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        fused = has_fused_kernels(params[0].device)
        for p in params:
            if "step" not in self.state[p]:
                self.state[p]["step"] = torch.zeros((), device=p.device)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=fused,
            capturable=params[0].device.type == "cuda",
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=EPS,
            maximize=False,
        )

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        self.workspaces = {}
        for p, own in self.state.items():
            if "step" in own:  # torch leaves it where it was saved
                own["step"] = torch.as_tensor(own["step"], dtype=torch.float32).to(p.device)


def is_matrix(weights: Tensor) -> bool:
    """Is a layer's weight worth orthogonalizing? Not a depthwise kernel, nor a matrix that takes
    too long.
    """
    depthwise = weights.ndim == 4 and weights.shape[1] == 1
    return not depthwise and min(weights.flatten(1).shape) <= LARGEST


def equal_shapes(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters that have a gradient, in groups of one shape."""
    groups: dict[tuple, list[Tensor]] = {}
    for p in params:
        if p.grad is not None:
            groups.setdefault((p.shape, p.device), []).append(p)
    yield from groups.values()


class Workspace:
    """Memory for the changes of k parameters of one shape, taken once and used at every step.

    stack: float32 k×m×n, the changes as matrices. changes: views of it with the parameters' own
    shape and strides, so that one kernel moves them all. In the layout channels_last the columns
    are in another order, which changes nothing.
    """

    def __init__(self, params: list[Tensor]):
        matrix = params[0].flatten(1)
        self.stack = torch.empty(len(params), *matrix.shape, device=matrix.device)
        self.changes = [
            change.as_strided(p.shape, p.stride())
            for change, p in zip(self.stack, params, strict=True)
        ]
        self.tall = matrix.shape[0] > matrix.shape[1]
        stack = self.stack.mT if self.tall else self.stack
        rows, columns = stack.shape[1:]
        self.iteration: NewtonSchulz | GramNewtonSchulz
        if number_format(matrix.device) == "bf16":
            self.iteration = NewtonSchulz(stack, torch.bfloat16)
        elif columns > 1.5 * rows:
            self.iteration = GramNewtonSchulz(stack)
        else:
            self.iteration = NewtonSchulz(stack, torch.float32)

    def orthogonalize(self, iterations: int) -> None:
        """Replace each matrix U S Vᵀ of the stack by nearly U Vᵀ: after 5 iterations, singular
        values of 0.7 to 1.2.
        """
        self.iteration(self.stack.mT if self.tall else self.stack, iterations)


class NewtonSchulz:
    """The iteration on whole matrices, in bf16 where the device computes in it."""

    def __init__(self, stack: Tensor, dtype: torch.dtype):
        count, rows, columns = stack.shape
        self.x = torch.empty(count, rows, columns, dtype=dtype, device=stack.device)
        self.spare = torch.empty_like(self.x)
        self.gram = torch.empty(count, rows, rows, dtype=dtype, device=stack.device)
        self.polynomial = torch.empty_like(self.gram)

    def __call__(self, stack: Tensor, iterations: int) -> None:
        """stack: float32 k×m×n with m ≤ n, replaced."""
        norms = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True)
        self.x.copy_(stack / (norms + 1e-7))
        for _ in range(iterations):
            torch.bmm(self.x, self.x.mT, out=self.gram)
            torch.baddbmm(self.gram, self.gram, self.gram, beta=B, alpha=C, out=self.polynomial)
            torch.baddbmm(self.x, self.polynomial, self.x, beta=A, out=self.spare)
            self.x, self.spare = self.spare, self.x
        stack.copy_(self.x)


class GramNewtonSchulz:
    """The same in fp32 on the m×m matrix x xᵀ alone: each iterate is a polynomial of it, times x.

    The wide matrix is multiplied twice, not ten times: 256×4608 took 13 ms instead of 35 on 2
    cores.
    """

    def __init__(self, stack: Tensor):
        count, rows, columns = stack.shape
        self.gram = torch.empty(count, rows, rows, device=stack.device)
        self.polynomial = torch.empty_like(self.gram)
        self.product = torch.empty_like(self.gram)
        self.spare = torch.empty_like(self.gram)
        self.result = torch.empty(count, rows, columns, device=stack.device)

    def __call__(self, stack: Tensor, iterations: int) -> None:
        """stack: float32 k×m×n with m ≤ n, replaced."""
        norms = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True) + 1e-7
        torch.bmm(stack, stack.mT, out=self.gram)
        self.gram.div_(norms.square())
        for i in range(iterations):
            torch.baddbmm(self.gram, self.gram, self.gram, beta=B, alpha=C, out=self.polynomial)
            self.polynomial.diagonal(dim1=1, dim2=2).add_(A)
            if i == 0:
                self.product.copy_(self.polynomial)
            else:
                torch.bmm(self.polynomial, self.product, out=self.spare)
                self.product, self.spare = self.spare, self.product
            if i < iterations - 1:
                torch.bmm(self.polynomial, self.gram, out=self.spare)
                torch.bmm(self.spare, self.polynomial, out=self.gram)
        torch.bmm(self.product, stack, out=self.result)
        torch.div(self.result, norms, out=stack)


class Average(AveragedModel):
    """Exponential moving average of a model's weights and buffers: `decay` of itself, the rest of
    the model.

    torch's own asks the device how often it was updated, and so cannot be captured in a CUDA graph.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self.begun = False

    @torch.no_grad()
    def update_parameters(self, model: torch.nn.Module) -> None:
        averaged = [*self.module.parameters(), *self.module.buffers()]
        current = [*model.parameters(), *model.buffers()]
        if not self.begun:
            torch._foreach_copy_(averaged, current)
            self.begun = True
        else:
            floats = [a for a in averaged if a.is_floating_point()]
            torch._foreach_lerp_(
                floats, [c for c in current if c.is_floating_point()], 1 - self.decay
            )
            counts = [a for a in averaged if not a.is_floating_point()]
            if counts:  # how many batches BatchNorm has seen
                torch._foreach_copy_(counts, [c for c in current if not c.is_floating_point()])
        self.n_averaged += 1

    def load_state_dict(self, *args, **kwargs):
        keys = super().load_state_dict(*args, **kwargs)
        self.begun = bool(self.n_averaged > 0)
        return keys
