"""Asking the rule: what it is told about each group at a step, and whether its answer can be carried out."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim import SGD, Optimizer

from halflife import guards
from halflife.mechanisms import Answer, HostCopy
from halflife.moments import SecondMoment
from halflife.rules.base import Penalty, Rule, StepInfo
from halflife.rules.stable import Stable
from halflife.terms import INITIAL, PEAK, Terms

__all__ = ["Asker"]


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
        stable = [part for part in terms.rule.parts() if isinstance(part, Stable)]
        if stable and (stable[0].beta2 is not None or not isinstance(optimizer, SGD)):
            self.moment = SecondMoment(optimizer, stable[0].beta2)

    def ask(self, step: int) -> list[Answer]:
        """Return the answer for each group, all of them before anything is touched.

        Args:
            step: Steps taken.

        Returns:
            One answer per group of the optimizer.
        """
        self._check_last()
        terms, rule = self._terms, self._terms.rule
        second_moment: float | Tensor = math.nan
        if self.moment is not None:
            norm, self.total_norm = self.total_norm, None
            second_moment = self.moment.update(norm)
        answers = []
        for index, group in enumerate(self._optimizer.param_groups, terms.first_group(self._optimizer)):
            lr = guards.check_lr(group.get("lr"), index)
            # At lr == 0 the optimizer does not move weights, so no rule may. A penalty is part of the
            # gradient, which optimizers feed to their statistics at lr == 0 too.
            decays = terms.decays(group)
            if not decays or (lr == 0.0 and not isinstance(rule, Penalty)):
                answers.append(Answer(0.0, StepInfo(lr=lr, group=index), decays))
                continue
            info = self._info(group, lr, index, step, second_moment)
            answers.append(Answer(self._answer(info), info, decays))
        return answers

    def _info(self, group: dict[str, Any], lr: float, index: int, step: int, second_moment: float | Tensor) -> StepInfo:
        numbers, needs = self._terms.numbers, self._terms.rule.needs
        sgd = "second_moment" in needs and self.moment is None
        return StepInfo(
            lr=lr,
            lam=group.get(INITIAL, math.nan),
            step=step,
            peak_lr=self._peak(group, lr, index) if "peak_lr" in needs else math.nan,
            steps_per_epoch=numbers.get("steps_per_epoch", math.nan),
            tokens_per_step=numbers.get("tokens_per_step", math.nan),
            group=index,
            momentum=float(group["momentum"]) if sgd else math.nan,
            dampening=float(group["dampening"]) if sgd else math.nan,
            second_moment=second_moment,
        )

    def _answer(self, info: StepInfo) -> float | Tensor:
        rule = self._terms.rule
        if isinstance(rule, Penalty):
            value: float | Tensor = rule.coefficient(info)
        else:
            asked = next(part for part in rule.parts() if isinstance(part, Rule))
            if asked.needs & {"weight_norm", "net_norm"}:
                return 0.0  # known after the step only
            value = asked.fraction(info)
        held = rule.explicit_lam
        if held is None and "lam" in rule.needs:
            held = info.lam
        lam = math.nan if held is None else held
        if isinstance(value, Tensor):
            self._pending.append((HostCopy(value), info, lam))
            return value.clamp(max=1.0)  # r > 1 would flip signs before the check below can stop the run
        guards.check_fraction(rule, float(value), lr=info.lr, lam=lam, group=info.group)
        return float(value)

    def _check_last(self) -> None:
        """Check answers that were tensors on an accelerator: reading them at once would have waited for it."""
        pending, self._pending = self._pending, []
        for copy, info, lam in pending:
            guards.check_fraction(self._terms.rule, copy.read(), lr=info.lr, lam=lam, group=info.group)

    def _peak(self, group: dict[str, Any], lr: float, index: int) -> float:
        """Return the group's peak learning rate and keep it in the group; called at lr > 0 only."""
        given = self._terms.numbers.get("peak_lr")
        if given is not None:
            group[PEAK] = given
        elif not group[PEAK] > 0.0:
            candidates = (float(group.get(key) or 0.0) for key in ("max_lr", "initial_lr"))  # optimi has None
            group[PEAK] = next((candidate for candidate in candidates if candidate > 0.0), lr)
        guards.check_peak(lr, group[PEAK], index)
        return float(group[PEAK])
