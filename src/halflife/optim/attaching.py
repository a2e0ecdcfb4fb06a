"""``attach``: put a rule on optimizers that the user already has.

It and `halflife.optim.hooks` are the only places that touch an optimizer.

Examples:
    >>> import torch
    >>> from halflife.rules import HalfLife
    >>> weight = torch.nn.Parameter(torch.ones(2, 2))
    >>> optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=1.0)
    >>> handle = attach(optimizer, HalfLife(steps=1))
    >>> weight.grad = torch.zeros_like(weight)
    >>> optimizer.step()
    >>> weight[0, 0].item(), handle.fractions()
    (0.5, [0.5])
    >>> handle.detach()
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.numbers import check_positive
from halflife.optim import refusals
from halflife.optim.actions import LowPrecision
from halflife.optim.config import KEYS, MARK, Config, Select
from halflife.optim.hooks import Attachment
from halflife.optim.low_precision import check_choice
from halflife.optim.wrappers import unwrapped
from halflife.rules.base import Applier, Part, Penalty, Rule

__all__ = ["Handle", "attach", "handle_of"]


def attach(
    optimizer: Optimizer | Sequence[Optimizer],
    rule: Rule | Applier | Penalty,
    *,
    select: Select = None,
    peak_lr: float | None = None,
    steps_per_epoch: float | None = None,
    tokens_per_step: float | None = None,
    allow_other_law: bool = False,
    low_precision: LowPrecision = None,
) -> Handle:
    """Let ``rule`` decide the decay of an optimizer from its next step on, in place of the optimizer's own.

    Groups whose ``weight_decay`` is 0 stay without decay. Which ones these are is recorded at once, as
    ``initial_weight_decay`` in each group, and does not change when something rewrites ``weight_decay``
    later. A rule without ``lam`` reads each group's own value as its lam, if its unit is the same. Between
    steps ``weight_decay`` holds what the user set, so that copies, checkpoints and logs show that; the optimizer's
    ``defaults`` are not touched.

    The decay acts between gradient and update, after all other step hooks, on parameters with a gradient, and not at
    ``lr == 0``. A step that raises is as if it had not been, as far as the optimizer allows it: ``docs/library.md`` says
    what holds. The number of steps and the peak are kept in ``optimizer.state_dict()``; resuming is exact, and attaching
    before or after ``load_state_dict`` is the same. ``torch.distributed.checkpoint`` reads only what the
    optimizer has a place for: attach before its ``load``, and keep the order of the parameters. A copy
    (``copy.deepcopy``, ``pickle``) carries no rule: attach again, and load the ``state_dict()`` of the original where
    the rule counts steps or remembers norms (a warning says so). A learning rate that is a tensor on an
    accelerator is read once per step, which waits for the device.

    Args:
        optimizer: An optimizer, or several that train one model together (Muon and AdamW). Wrappers of accelerate,
            Lightning and Fabric are looked through.
        rule: A rule or applier of `halflife.rules`, or the penalty ``L2``.
        select: ``"all"`` lets every group decay, also those with 0 and optimizers that have no
            ``weight_decay``.
        peak_lr: The largest learning rate of the schedule, for rules that divide by it. Default: each group's
            ``max_lr``, else its ``initial_lr`` (torch's schedulers set it), else its lr at the first step
            above 0. One number serves all groups; where their peaks differ, set ``max_lr`` in the groups.
        steps_per_epoch: Optimizer steps in one pass over the data, for half-lives in epochs.
        tokens_per_step: Tokens that one optimizer step consumes, for half-lives in tokens.
        allow_other_law: Whether a checkpoint made under another law may be loaded. The attached law then
            holds; the checkpoint gives the number of steps, and the peak where ``peak_lr`` does not.
        low_precision: What becomes of the decay of weights in bfloat16 and float16, which rounding takes away where r is small:
            all of it up to `halflife.precision.smallest_effective_fraction`, and a part above. ``"accumulate"`` keeps the sum s
            of ``-ln(1 - r)`` for each parameter, and removes ``1 - exp(-s)`` of it after 16 steps or more, when s is 2^-14 or
            more, or as soon as s is 2^-5; each weight is rounded down or up such that nothing is lost on average.
            ``"stochastic"`` does the same, and rounds at random (Gupta et al. 2015, arXiv 1502.02551, section 3), with seeds
            that follow from the count of passes. Neither decays through the optimizer's own decay; weights in other precisions
            decay at each step. ``"error"`` refuses a step that asks for ``0 < r <= eps / 4``.

    Returns:
        The handle that tells what was applied and takes the rule off again; in a ``with`` statement it does so at the end.

    Raises:
        UserError: If the optimizer steps another one over the same weights, which is then named, or has no step hooks; if
            nothing would decay, the rule needs a number that is missing, one lam would replace different values of the groups,
            a group's ``weight_decay`` is no number or of another unit than the rule's lam, a rule is attached already,
            ``low_precision`` has no weights or no rule that it serves, or the loaded checkpoint has another law or is damaged.
            A step raises it, with the weights untouched, where the rule asks for r outside [0, 1), or for one that rounding
            takes away under ``low_precision="error"``, lr is negative or NaN, or lr is above the peak. An r that is computed on
            an accelerator (`Stable`) is looked at a step later; the step that asked for too much is made without decay.

    Examples:
        >>> import torch, halflife
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=1e-4)
        >>> handle = attach(optimizer, halflife.HalfLife(steps=2))
        >>> for _ in range(2):
        ...     weight.grad = torch.zeros(3)
        ...     optimizer.step()
        >>> round(weight[0].item(), 6)
        0.5
        >>> handle.detach()
    """
    given = [optimizer] if not isinstance(optimizer, Sequence) else list(optimizer)
    optimizers = [unwrapped(each) for each in given]
    refusals.check_optimizers(given, [each for each in optimizers if handle_of(each) is not None])
    refusals.check_rule(rule, optimizers)
    if select not in (None, "all"):  # a tuple: what was given may not be hashable
        raise UserError(f'select must be None (groups with weight_decay != 0) or "all", got {select!r}')
    numbers = {"peak_lr": peak_lr, "steps_per_epoch": steps_per_epoch, "tokens_per_step": tokens_per_step}
    check_choice(low_precision)
    known = {name: check_positive(name, value) for name, value in numbers.items() if value is not None}
    handle = Handle(Config(optimizers, rule, select, known, allow_other_law, low_precision))
    handle._start(optimizers)
    return handle


def handle_of(optimizer: Optimizer) -> Handle | None:
    """Find the handle of the rule that is attached to an optimizer.

    Args:
        optimizer: Any optimizer, or a wrapper that `attach` looks through.

    Returns:
        Its handle, or None if no rule is attached.
    """
    handle: Handle | None = getattr(unwrapped(optimizer), MARK, None)
    return handle


class Handle:
    """A rule on its optimizers. Made by `attach`.

    In a ``with`` statement the rule is taken off at the end. A handle cannot be copied: copy the optimizer, and attach
    the rule to the copy.

    Attributes:
        config: What was agreed when the rule was attached.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self._attachments = [Attachment(config, optimizer) for optimizer in config.optimizers]

    @property
    def rule(self) -> Part:
        """The rule, applier or penalty that is attached."""
        return self.config.rule

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """The optimizers that it is attached to, in the order in which groups are counted.

        An optimizer that nobody uses any more is gone: the optimizer holds its handle, not the handle the optimizer.
        """
        return self.config.optimizers

    def rule_for(self, optimizer: Optimizer, index: int) -> Part | None:
        """Return the part of the rule that acts on one parameter group.

        Args:
            optimizer: One of the optimizers.
            index: Number of the group in this optimizer.

        Returns:
            A rule, a penalty, or an applier around a rule; None if the group does not decay, or the rule has been
            detached.
        """
        return self.config.rule_for(unwrapped(optimizer), index) if self._attachments else None

    def __repr__(self) -> str:
        on = ", ".join(
            f"{type(each).__name__} ({len(each.param_groups)} group{'s' * (len(each.param_groups) != 1)})"
            for each in self.optimizers
        )
        return f"<Handle of {self.rule!r} on {on or 'no optimizer'}, {'attached' if self._attachments else 'detached'}>"

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UserError(
            f"{self!r} cannot be copied or pickled: it belongs to the hooks of its optimizers; leave it out, copy the"
            " optimizers (a copy carries no rule), and attach the rule to the copies: halflife.attach(copy, handle.rule)"
        )

    def fractions(self) -> list[float]:
        """Tell which fraction the last step removed, per group, counted through all optimizers.

        With ``low_precision="accumulate"`` or ``"stochastic"`` it is what the step asked for, which reaches weights in bfloat16
        and float16 some steps later.

        Returns:
            One number per group: 0 for groups that do not decay, before the first step, after a step that was
            skipped for an overflow, and for an L2 penalty, which removes no fraction. For rules that answer
            per tensor their mean, for `Cautious` and `Toward` the fraction of the rule inside. Empty after
            detach. On an accelerator reading a fraction that was computed there waits for the device.
        """
        return [r for attachment in self._attachments for r in attachment.fractions()]

    def hand_over_norm(self, norm: Tensor | float, *, max_norm: float | None = None) -> None:
        """Give the norm of all gradients for the coming step, so that `Stable` need not measure it again.

        ``torch.nn.utils.clip_grad_norm_`` returns the norm from before the clipping: hand it over together
        with ``max_norm``. It must be the norm of the gradients of all parameters of the optimizer, unscaled, as
        the step will see them. One norm stands for all tensors: it is exact while all of them have the same
        ``beta2`` and have had the same number of gradients. The next step uses it up.

        Args:
            norm: The total norm; a tensor on the device is not read here.
            max_norm: The bound of the clipping, if the norm was taken before it.

        Raises:
            UserError: If the rule has no use for a norm, several optimizers are attached, or none any more.
        """
        if not self._attachments:
            raise UserError(f"{self.rule!r} has been detached: nothing to hand over to; attach it again")
        if len(self._attachments) != 1:
            raise UserError(
                f"hand_over_norm serves one optimizer, this handle has {len(self._attachments)}: one norm does not tell"
                " which part belongs to which; attach each by itself"
            )
        if max_norm is not None:
            norm = norm * _clip_coefficient(norm, max_norm)
        if not self._attachments[0].hand_over_norm(norm):
            raise UserError(f"{self.rule!r} measures no gradients on this optimizer: nothing to hand over")

    def detach(self) -> None:
        """Take the rule off; the optimizers are as they were, and their own decay acts again."""
        for attachment in self._attachments:
            attachment.stop()
        for optimizer in self.optimizers:
            vars(optimizer).pop(MARK, None)
        self._attachments = []

    def _start(self, optimizers: Sequence[Optimizer]) -> None:
        """Check everything, then register the hooks; if anything is refused, the optimizers are as they were."""
        try:
            for attachment, optimizer in zip(self._attachments, optimizers, strict=True):
                attachment.sync_groups(optimizer)
            self.config.check_groups()
            for attachment, optimizer in zip(self._attachments, optimizers, strict=True):
                attachment.check_effective(optimizer)
        except BaseException:
            for attachment in self._attachments:
                attachment.remove_keys(keep=KEYS)  # a checkpoint may have brought some, for the next try
            raise
        for attachment, optimizer in zip(self._attachments, optimizers, strict=True):
            attachment.start(optimizer)
            setattr(optimizer, MARK, self)


def _clip_coefficient(norm: Tensor | float, max_norm: float) -> Tensor | float:
    """Return what torch's clip_grad_norm_ multiplies gradients by."""
    coefficient = max_norm / (norm + 1e-6)
    return coefficient.clamp(max=1.0) if isinstance(coefficient, Tensor) else min(1.0, coefficient)
