"""What torch.optim lacks: Muon with AdamW in one optimizer, and a weight average for CUDA graphs.

Configs name these and torch's own by their `_target_`; fer.training.optimizer_setup builds them.
"""

from collections.abc import Iterator
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.swa_utils import AveragedModel

from fer.runtime import DTYPES, has_fused_kernels, number_format

Rate = Annotated[float, Gt(0)]
# AdamW updates matrices whose shorter side is longer: to orthogonalize 4096×4096 takes 2 TFLOP, a
# whole training step of vgg13 on 128 faces 0.4.
LARGEST = 512
# AdamW's.
BETAS = (0.9, 0.999)
EPS = 1e-8
# Newton-Schulz iteration x ← a x + b (x xᵀ) x + c (x xᵀ)² x, coefficients of Jordan et al. 2024.
A, B, C = 3.4445, -4.7750, 2.0315


def skip_dynamo() -> None:
    """Stop torch's optimizers from importing torch._dynamo at their first call; that takes a second
    or two.

    They import it to stay out of compiled graphs; no optimizer here is part of one. The `step` of
    torch's own optimizers still imports it.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = getattr(torch.optim.Optimizer, name)
        undecorated = getattr(method, "__wrapped__", None)
        if undecorated is not None:
            undecorated.__dynamo_disable = undecorated


skip_dynamo()


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the inner layers, AdamW for all other parameters.

    Muon orthogonalizes the momentum of each weight matrix. A convolution's weights are a matrix of
    filters × everything else. AdamW updates the first and the last layer, layers whose matrix has
    more than 512 rows and more than 512 columns, depthwise kernels, biases, norms and PReLU slopes.
    (torch.optim.Muon takes 2-D parameters only.)

    lr: learning rate of Muon; the singular values of an update are about lr.
    adam_lr: learning rate of AdamW. The schedule scales both.
    weight_decay: decoupled, for the weights of layers only.
    iterations: Newton-Schulz iterations; fewer are faster and less exact.
    """

    capturable = True  # can be captured in a CUDA graph, with learning rates that are tensors

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
        vectors = [p for p in params if p.ndim not in (2, 4)]
        matrices = [p for p in weights[1:-1] if is_orthogonalized(p)]
        ids_of_matrices = {id(p) for p in matrices}
        other_weights = [p for p in weights if id(p) not in ids_of_matrices]
        groups = [
            {"params": matrices, "lr": lr, "momentum": momentum, "iterations": iterations},
            {"params": other_weights, "lr": adam_lr},
            {"params": vectors, "lr": adam_lr, "weight_decay": 0.0},
        ]
        super().__init__(groups, {"weight_decay": weight_decay})
        self.workspaces: dict[tuple, Workspace] = {}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # takes no closure
        muon_group, *adamw_groups = self.param_groups
        for params in by_shape(muon_group["params"]):
            self.step_matrices(muon_group, params)
        for group in adamw_groups:
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
        torch._foreach_lerp_(workspace.changes, momenta, group["momentum"])  # Nesterov momentum
        workspace.orthogonalize(group["iterations"])

        rows, columns = workspace.stack.shape[1:]
        workspace.stack.mul_(group["lr"] * max(1, rows / columns) ** 0.5)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_sub_(params, workspace.changes)

    def step_adamw(self, group: dict) -> None:
        """Update the group's parameters that have a gradient, as torch.optim.AdamW does."""
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
        for p, p_state in self.state.items():
            if "step" in p_state:  # torch leaves it on the device where it was saved
                step = torch.as_tensor(p_state["step"], dtype=torch.float32)
                p_state["step"] = step.to(p.device)


def is_orthogonalized(weights: Tensor) -> bool:
    """Whether Muon updates the weights of this inner layer: not if they are a depthwise kernel or a
    matrix that takes too long.
    """
    depthwise = weights.ndim == 4 and weights.shape[1] == 1
    return not depthwise and min(weights.flatten(1).shape) <= LARGEST


def by_shape(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters that have a gradient, one list for each shape."""
    groups: dict[tuple, list[Tensor]] = {}
    for p in params:
        if p.grad is not None:
            groups.setdefault((p.shape, p.device), []).append(p)
    yield from groups.values()


class Workspace:
    """Buffers for the updates of k parameters of one shape, allocated once and reused every step.

    stack: float32 k×m×n, the updates as matrices.
    changes: views of `stack` with the parameters' own shape and strides, so that one kernel updates
    all k parameters. With channels_last the columns of a matrix are in another order, which does
    not affect the result.
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
        dtype = DTYPES[number_format(matrix.device)]
        if dtype == torch.float32 and columns > 1.5 * rows:
            self.iteration = GramNewtonSchulz(stack)
        else:
            self.iteration = NewtonSchulz(stack, dtype)

    def orthogonalize(self, iterations: int) -> None:
        """Replace each matrix U S Vᵀ of the stack by approximately U Vᵀ: after 5 iterations its
        singular values are 0.7 to 1.2.
        """
        self.iteration(self.stack.mT if self.tall else self.stack, iterations)


class NewtonSchulz:
    """The iteration on whole matrices, in `dtype`.

    float16 does not overflow: x is divided by its norm, and no later product exceeds 5.
    """

    def __init__(self, stack: Tensor, dtype: torch.dtype):
        count, rows, columns = stack.shape
        self.x = torch.empty(count, rows, columns, dtype=dtype, device=stack.device)
        self.spare = torch.empty_like(self.x)
        self.gram = torch.empty(count, rows, rows, dtype=dtype, device=stack.device)
        self.polynomial = torch.empty_like(self.gram)

    def __call__(self, stack: Tensor, iterations: int) -> None:
        """stack: float32 k×m×n with m ≤ n, overwritten."""
        norms = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True)
        torch.div(stack, norms + 1e-7, out=self.x)
        for _ in range(iterations):
            torch.bmm(self.x, self.x.mT, out=self.gram)
            torch.baddbmm(self.gram, self.gram, self.gram, beta=B, alpha=C, out=self.polynomial)
            torch.baddbmm(self.x, self.polynomial, self.x, beta=A, out=self.spare)
            self.x, self.spare = self.spare, self.x
        stack.copy_(self.x)


class GramNewtonSchulz:
    """The same iteration in fp32 on the m×m matrix x xᵀ: each iterate is a polynomial of it, times
    x.

    The wide m×n matrix enters two products instead of ten: 256×4608 took 13 ms instead of 35 on 2
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
        """stack: float32 k×m×n with m ≤ n, overwritten."""
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
    """Exponential moving average (EMA) of a model's weights and buffers.

    The first update copies the model; each later one sets average = decay × average + (1 - decay) ×
    model. torch's AveragedModel reads its update count back from the device, so it cannot be
    captured in a CUDA graph.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        super().__init__(model, use_buffers=True)
        self.decay = decay
        self.started = False

    @torch.no_grad()
    def update_parameters(self, model: torch.nn.Module) -> None:
        averages = [*self.module.parameters(), *self.module.buffers()]
        current = [*model.parameters(), *model.buffers()]
        if self.started:
            self.average(averages, current)
        else:
            torch._foreach_copy_(averages, current)
            self.started = True
        self.n_averaged += 1

    def average(self, averages: list[Tensor], current: list[Tensor]) -> None:
        """Move floating-point tensors towards the current ones. Copy integers, such as BatchNorm's
        count of batches.
        """
        float_averages = [tensor for tensor in averages if tensor.is_floating_point()]
        floats = [tensor for tensor in current if tensor.is_floating_point()]
        torch._foreach_lerp_(float_averages, floats, 1 - self.decay)
        integer_copies = [tensor for tensor in averages if not tensor.is_floating_point()]
        if integer_copies:
            integers = [tensor for tensor in current if not tensor.is_floating_point()]
            torch._foreach_copy_(integer_copies, integers)

    def load_state_dict(self, *args, **kwargs):
        keys = super().load_state_dict(*args, **kwargs)
        self.started = bool(self.n_averaged > 0)
        return keys
