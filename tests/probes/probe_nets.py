"""Small models and data for the tests of probes: under 5,000 weights, so that dense matrices are the oracles."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from halflife.probes import Problem

Batches = list[tuple[Tensor, Tensor]]
NUM_CLASSES = 3


class ConvNet(nn.Module):
    """Two convolutions with BatchNorm; tanh, so that the residual of the Hessian has a diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(3)
        self.second = nn.Conv2d(3, 4, 3, stride=2)
        self.norm2 = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm1(self.first(x)))
        out: Tensor = self.head(torch.relu(self.norm2(self.second(x))).mean((2, 3)))
        return out


def split_batches(x: Tensor, y: Tensor, sizes: tuple[int, ...]) -> Batches:
    """The data in batches of these sizes."""
    return list(zip(torch.split(x, list(sizes)), torch.split(y, list(sizes)), strict=True))


def mlp() -> nn.Module:
    """Two hidden layers, one of them frozen in part: its bias takes no part in the weights."""
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, NUM_CLASSES)).double()
    net[2].bias.requires_grad_(False)
    return net


def mlp_problem(sizes: tuple[int, ...] = (9, 2, 6), loss: str = "cross-entropy", seed: int = 0) -> Problem:
    """A net on random data, in batches of unequal size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = mlp()
        x = torch.randn(sum(sizes), 4, dtype=torch.float64)
        if loss == "mse":
            return Problem(net, nn.MSELoss(), split_batches(x, torch.randn(sum(sizes), NUM_CLASSES).double(), sizes))
        y = torch.randint(NUM_CLASSES, (sum(sizes),))
        return Problem(net, nn.CrossEntropyLoss(), split_batches(x, y, sizes))


def conv_problem(batch_norm: Literal["eval", "batch"], sizes: tuple[int, ...] = (7, 4, 5)) -> Problem:
    """A net with BatchNorm whose running statistics and gains are not those of a new one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = ConvNet().double()
        with torch.no_grad():
            for norm in (net.norm1, net.norm2):
                assert norm.weight is not None
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.uniform_(-0.5, 0.5)
        net(torch.randn(20, 1, 6, 6, dtype=torch.float64) + 0.3)  # moves the running statistics
        x = torch.randn(sum(sizes), 1, 6, 6, dtype=torch.float64)
        y = torch.randint(NUM_CLASSES, (sum(sizes),))
        return Problem(net, nn.CrossEntropyLoss(), split_batches(x, y, sizes), batch_norm=batch_norm)


def problems() -> dict[str, Problem]:
    """One of each kind."""
    return {
        "mlp": mlp_problem(),
        "mlp, squared error": mlp_problem(loss="mse"),
        "conv, running statistics": conv_problem("eval"),
        "conv, batch statistics": conv_problem("batch"),
    }
