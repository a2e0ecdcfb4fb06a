"""The problems that the table is run on: small, but with every kind of parameter that a rule must treat right.

Prescribed gradients make the state of most optimizers independent of the weights, so that a bare twin can be set
to any weights and still takes the same step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["FACTORS", "LAM", "PEAKS", "Layout", "Member", "Net"]

LAM = 0.3  # large, so that a wrong factor, order or step shows

PEAKS = (0.1, 0.03, 0.05)
# Rises, falls, touches 0 (nothing may decay there) and never reaches the peak again.
FACTORS = (0.5, 1.0, 0.8, 0.0, 0.6, 0.3)

Layout = Literal["groups", "steady", "matrices", "one group", "sparse"]
Kind = Literal["used", "frozen", "idle", "sometimes"]


@dataclass(frozen=True)
class Member:
    """One parameter of a `Net`.

    Args:
        name: Its name.
        group: Number of its group.
        shape: Its shape.
        kind: ``"used"`` has a gradient at each step, ``"sometimes"`` at some, ``"idle"`` never; ``"frozen"``
            asks for none.
    """

    name: str
    group: int
    shape: tuple[int, ...]
    kind: Kind


MEMBERS = (
    Member("first.weight", 0, (4, 3), "used"),
    Member("first.frozen", 0, (2, 2), "frozen"),
    Member("first.expert", 0, (3, 5), "sometimes"),
    Member("second.weight", 1, (3, 4), "used"),
    Member("second.gain", 1, (5,), "used"),
    Member("second.idle", 1, (2, 2), "idle"),
    Member("third.weight", 2, (2, 6), "used"),
)
PRESENT = (1, 2, 5)  # the steps at which the gradient that comes and goes is there


class Net:
    """Parameters in three groups with different peaks, the last without decay, and a gradient for each step.

    One element of each tensor has gradients of exactly 0, so that a mask ``u * w >= 0`` meets its boundary, and
    another is 0 itself.

    Args:
        layout: ``"steady"`` has no gradient that comes and goes, ``"matrices"`` has two dimensions everywhere,
            ``"one group"`` has one group, whose members all decay, ``"sparse"`` has gradients of some rows only.
        dtype: Type of parameters and gradients.
        device: Their device.
        own: The groups' ``weight_decay``; None leaves the key out.
    """

    def __init__(
        self,
        layout: Layout = "groups",
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        own: tuple[float, float, float] | None = (LAM, LAM, 0.0),
    ) -> None:
        self.layout, self.dtype, self.device = layout, dtype, torch.device(device)
        self.members = [
            Member(
                each.name,
                0 if layout in {"one group", "sparse"} else each.group,
                (1, *each.shape) if layout not in {"groups", "steady"} and len(each.shape) == 1 else each.shape,
                each.kind,
            )
            for each in MEMBERS
            if layout != "sparse" or each.kind in {"used", "idle"}
        ]
        self._generator = torch.Generator().manual_seed(0)
        self.parameters = [
            torch.nn.Parameter(self._random(each.shape), requires_grad=each.kind != "frozen") for each in self.members
        ]
        with torch.no_grad():
            for parameter in self.parameters:
                parameter.view(-1)[-1] = 0.0
        self.own = own
        self.all_gradients = [[self._gradient(each, step) for each in self.members] for step in range(len(FACTORS))]

    @property
    def num_groups(self) -> int:
        """Number of parameter groups."""
        return 1 + max(each.group for each in self.members)

    @property
    def named(self) -> dict[str, Tensor]:
        """The parameters by name."""
        return {member.name: parameter for member, parameter in zip(self.members, self.parameters, strict=True)}

    def groups(self, extra: tuple[dict[str, Any], ...] = ()) -> list[dict[str, Any]]:
        """Return new parameter groups.

        Args:
            extra: Further settings per group.

        Returns:
            What an optimizer is built from.
        """
        made: list[dict[str, Any]] = []
        for index in range(self.num_groups):
            named = [(m.name, p) for m, p in zip(self.members, self.parameters, strict=True) if m.group == index]
            made.append({"params": named, "lr": PEAKS[index], "initial_lr": PEAKS[index]})
            if self.own is not None:
                made[index]["weight_decay"] = self.own[index]
            if index < len(extra):
                made[index].update(extra[index])
        return made

    def own_of(self, member: Member) -> float:
        """Return the weight decay of a member's group; 1 where the optimizer has none and all decay."""
        return 1.0 if self.own is None else self.own[member.group]

    def set_gradients(self, step: int) -> None:
        """Give each parameter a copy of its gradient at a step."""
        for parameter, gradient in zip(self.parameters, self.all_gradients[step], strict=True):
            parameter.grad = None if gradient is None else gradient.clone()

    @torch.no_grad()
    def set_weights(self, values: list[Tensor]) -> None:
        """Overwrite the parameters."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def values(self) -> list[Tensor]:
        """Return copies of the parameters."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def _random(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64).to(self.device, self.dtype)

    def _gradient(self, member: Member, step: int) -> Tensor | None:
        drawn = self._random(member.shape) * 0.5
        if member.kind in {"idle", "frozen"} or (
            member.kind == "sometimes" and step not in PRESENT and self.layout != "steady"
        ):
            return None
        drawn.view(-1)[0] = 0.0
        if self.layout != "sparse":
            return drawn
        rows = torch.tensor([step % member.shape[0]], device=self.device)
        return torch.sparse_coo_tensor(rows[None], drawn[rows], member.shape, check_invariants=True)
