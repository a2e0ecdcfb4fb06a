"""``explain``: the table of what decays, as data, as text and for rich."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from halflife.audit import view
from halflife.audit.findings import Finding, findings_of
from halflife.audit.inputs import model_of, optimizers_of
from halflife.audit.rows import Row, check_shapes, groups_of, rows_of
from halflife.numbers import check_positive

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True)
class Explanation:
    """Which parameters decay, by which law, and why. Made by `explain`; print it to see the table.

    Attributes:
        rows: One dict per parameter, of plain values that JSON can hold; None where a value does not exist.

            - ``parameter`` (its name), ``tied`` (its other names), ``shape``, ``dtype``, ``kind`` (matrices, embeddings,
              norms, biases, others), ``what`` (what it is more exactly).
            - ``optimizer`` and ``group``: numbers; None if in none. ``also_in``: others that hold it too.
            - ``decays``: whether the next step decays it; None if that could not be probed. ``why``: the reason.
              ``notes``: what else is true of it.
            - ``seen``: what a step with a gradient of zeros was seen to do: ``"still"``, ``"shrinks"`` (by a fraction of
              the weight), ``"varied"`` (it moves otherwise), ``"not probed"``. ``seen_on``: the parameter of the same
              kind that was stepped in its place; None: it was itself.
            - ``law``, ``lam``: the law, and the coefficient that it was seen to hold with.
            - ``lr``: the learning rate now. ``r``: the fraction that a step which acts removes; it holds at the learning
              rate ``r_lr``, which is ``lr``, or, where that is 0, the peak. ``half_life`` in calls of ``step()``.
              ``every``: the decay acts at every n-th call. ``r`` and ``half_life`` are those of all optimizers
              together, if several hold the parameter.
            - ``peak_lr``: the largest learning rate that is known. ``r_peak`` and ``half_life_peak``: r and half-life there.
            - ``half_life_epochs`` and ``half_life_tokens``, where the numbers for them were given.
        groups: One dict per parameter group: ``optimizer``, ``optimizer_name``, ``group``, ``num_parameters``,
            ``num_elements``, ``law``, ``pathway``, ``describe``, ``rule``, ``weight_decay`` (what the group says),
            ``notes``, and of its first parameter that decays ``lam``, ``lr``, ``r``, ``half_life``, ``r_lr``,
            ``peak_lr``, ``r_peak``, ``half_life_peak``.
        warnings: What is wrong or surprising, the worst first; each has ``code``, ``text`` and ``parameters``.
        parameters: The records behind the rows, for `halflife.assert_decay`.
    """

    rows: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    warnings: list[Finding]
    parameters: tuple[Row, ...]

    def __str__(self) -> str:
        return view.text(self.rows, self.groups, list(map(str, self.warnings)))

    def __repr__(self) -> str:
        return str(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        """Yield what rich prints; it asks for the width when it is printed."""
        return view.rich_parts(self.rows, self.groups, list(map(str, self.warnings)), options.max_width)


def explain(
    model: nn.Module | Iterable[Any] | None,
    optimizer: Optimizer | Iterable[Any],
    *,
    in_place: bool = False,
    steps_per_epoch: float | None = None,
    tokens_per_step: float | None = None,
    total_steps: float | None = None,
) -> Explanation:
    """Explain which parameters decay, by which law, and why, and warn of what is surprising.

    Nothing is read from the optimizer's settings: a copy of it is stepped as it is, with gradients of zeros, which shows
    what happens to each weight, and small copies are stepped to find by which law (see `halflife.identify`). An
    attached rule is found as well. Model, optimizer and random state are not touched; models on the meta device, sharded
    and quantized ones are fine. What could not be probed is said to be so, with the reason. A penalty that the training
    loop adds to its loss is not in the optimizer and cannot be seen; hooks of parameters, which act in the backward
    pass, are not run, but named. Parameters that are views of a stepped one are told from what happens to that memory.

    Args:
        model: The model; None if there is only the optimizer, whose parameters then have no kinds. Several models, as a
            list or a dict: names get the number or the key in front, ``0.weight`` or ``G.weight``.
        optimizer: The optimizer, or all those that train the model, as a list or a dict. A wrapper that is no torch
            optimizer but has ``param_groups`` and ``step()`` is taken as it is.
        in_place: Step the real optimizer instead of a copy, once with gradients of zeros, and put parameters,
            gradients, state, groups, attributes and random state back, checked to the bit. For what no copy can
            follow: step hooks of other libraries, steps that are closures over the model's own tensors, process
            groups. Not for an optimizer whose step has effects outside it, such as one that writes a log.
        steps_per_epoch: Optimizer steps in one pass over the data, for half-lives in epochs.
        tokens_per_step: Tokens that one optimizer step consumes, for half-lives in tokens.
        total_steps: The length of the run; a half-life beyond it is warned of.

    Returns:
        The table; ``print(table)`` shows it, with rich as well as without.

    Raises:
        UserError: If something else than models and optimizers is given, one of them twice, a number is not > 0, or the
            model is lazy and has not seen its first batch.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        >>> table = explain(model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1))
        >>> [(row["parameter"], row["decays"], row["law"], row["r"]) for row in table.rows][:1]
        [('0.weight', True, 'decoupled', 0.0001)]
        >>> print(table.warnings[0].code)
        decay-on-norms
    """
    numbers = {"steps_per_epoch": steps_per_epoch, "tokens_per_step": tokens_per_step, "total_steps": total_steps}
    for name, value in numbers.items():
        if value is not None:
            check_positive(name, value)
    whole = model_of(model)
    optimizers = optimizers_of(optimizer)
    if whole is not None:
        check_shapes(whole.named_parameters())
    groups = groups_of(optimizers, in_place=in_place)
    rows = rows_of(whole, groups)
    members: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rows:
        for group in row.groups:
            members[id(group)].append(row)
    return Explanation(
        rows=[row.plain(steps_per_epoch, tokens_per_step) for row in rows],
        groups=[group.plain(members[id(group)]) for group in groups],
        warnings=findings_of(rows, groups, optimizers, total_steps=total_steps, in_place=in_place),
        parameters=tuple(rows),
    )
