"""Asking the rule: what it is told about each group at a step, and whether its answer can be carried out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.optim import refusals
from halflife.optim.apply import Answer, HostCopy
from halflife.optim.config import INITIAL, PEAK, Terms
from halflife.optim.second_moment import SecondMoment, measures_gradients
from halflife.rules.base import Penalty, Rule, StepInfo
from halflife.rules.stable import Stable

__all__ = ["Asker"]


def reading_waits(tensor: Tensor) -> bool:
    """Return whether the host would wait for a device to read a tensor."""
    return tensor.device.type != "cpu"


class Asker:
    """Asks the rule of one optimizer for its answers.

    Args:
        terms: What was agreed.
        optimizer: The optimizer.

    Attributes:
        moment: The running mean of squared gradients, where the rule needs it; else None.
        total_norm: The norm of all gradients of the coming step, where the user has handed it over.
    """

    def __init__(self, terms: Terms, optimizer: Optimizer) -> None:
        self._terms = terms
        self._optimizer = optimizer
        self._pending: list[tuple[HostCopy, StepInfo, float]] = []
        self.total_norm: Tensor | float | None = None
        self.moment: SecondMoment | None = None
        rule = terms.rule
        num_groups = [len(each.param_groups) for each in terms.optimizers]
        index = [each is optimizer for each in terms.optimizers].index(True)
        stable = [part for part in rule.parts_for(num_groups, index) if isinstance(part, Stable)]
        if stable and measures_gradients(stable[0], optimizer):
            self.moment = SecondMoment(optimizer, stable[0].beta2)
        # Looked up once: a step has just streamed all weights through the caches, so that every line of Python
        # between two steps runs several times slower than it would by itself.
        self._penalty = isinstance(rule, Penalty)
        self._needs_peak = "peak_lr" in rule.needs
        self._needs_momentum = bool(stable) and self.moment is None
        self._lam_is_own = rule.explicit_lam is None and "lam" in rule.needs
        self._lam = math.nan if rule.explicit_lam is None else rule.explicit_lam
        self._steps_per_epoch = terms.numbers.get("steps_per_epoch", math.nan)
        self._tokens_per_step = terms.numbers.get("tokens_per_step", math.nan)
        asked = next(part for part in rule.parts() if isinstance(part, Rule | Penalty))
        self._asked = asked.coefficient if isinstance(asked, Penalty) else asked.fraction
        self._known_later = bool(asked.needs & {"weight_norm", "net_norm"})

    def ask(self, step: int) -> list[Answer]:
        """Return the answer for each group, all of them before anything is touched.

        Args:
            step: Steps taken.

        Returns:
            One answer per group of the optimizer.
        """
        if self._pending:
            self._check_last()
        terms = self._terms
        second_moment: float | Tensor = math.nan
        if self.moment is not None:
            norm, self.total_norm = self.total_norm, None
            second_moment = self.moment.update(norm)
        answers = []
        for index, group in enumerate(self._optimizer.param_groups, terms.first_group(self._optimizer)):
            lr = refusals.check_lr(group.get("lr"), index)
            # At lr == 0 the optimizer does not move weights, so no rule may. A penalty is part of the
            # gradient, which optimizers feed to their statistics at lr == 0 too.
            decays = terms.decays(group)
            if not decays or (lr == 0.0 and not self._penalty):
                answers.append(Answer(0.0, StepInfo(lr=lr, group=index), decays))
                continue
            info = self._info(group, lr, index, step, second_moment)
            answers.append(Answer(self._answer(info), info, decays))
        return answers

    def _info(self, group: dict[str, Any], lr: float, index: int, step: int, second_moment: float | Tensor) -> StepInfo:
        return StepInfo(
            lr=lr,
            lam=group.get(INITIAL, math.nan),
            step=step,
            peak_lr=self._peak(group, lr, index) if self._needs_peak else math.nan,
            steps_per_epoch=self._steps_per_epoch,
            tokens_per_step=self._tokens_per_step,
            group=index,
            momentum=float(group["momentum"]) if self._needs_momentum else math.nan,
            dampening=float(group["dampening"]) if self._needs_momentum else math.nan,
            second_moment=second_moment,
        )

    def _answer(self, info: StepInfo) -> float | Tensor:
        if self._known_later:
            return 0.0
        value = self._asked(info)
        lam = info.lam if self._lam_is_own else self._lam
        if type(value) is not float and isinstance(value, Tensor) and reading_waits(value):
            # Reading it would wait for the device, so the check comes a step late. What it will refuse must not
            # touch the weights by then.
            self._pending.append((HostCopy(value), info, lam))
            return torch.where((value >= 0.0) & (value < (math.inf if self._penalty else 1.0)), value, 0.0)
        number = float(value)
        if not 0.0 <= number < 1.0:
            refusals.check_fraction(self._terms.rule, number, lr=info.lr, lam=lam, group=info.group)
        return number

    def _check_last(self) -> None:
        """Check answers that were tensors on an accelerator: reading them at once would have waited for it."""
        pending, self._pending = self._pending, []
        for copy, info, lam in pending:
            refusals.check_fraction(self._terms.rule, copy.read(), lr=info.lr, lam=lam, group=info.group)

    def _peak(self, group: dict[str, Any], lr: float, index: int) -> float:
        """Return the group's peak learning rate and keep it in the group; called at lr > 0 only."""
        given = self._terms.numbers.get("peak_lr")
        if given is not None:
            group[PEAK] = given
        elif not group[PEAK] > 0.0:
            candidates = (float(group.get(key) or 0.0) for key in ("max_lr", "initial_lr"))  # optimi has None
            group[PEAK] = next((candidate for candidate in candidates if candidate > 0.0), lr)
        refusals.check_peak(lr, group[PEAK], index)
        return float(group[PEAK])
