"""``explain``: the table of what decays, as data, as text and for rich."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from halflife.audit import view
from halflife.audit.findings import Finding, findings_of
from halflife.audit.rows import Row, check_shapes, groups_of, rows_of
from halflife.laws.copies import unwrapped
from halflife.numbers import check_positive

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True)
class Explanation:
    """Which parameters decay, by which law, and why. Made by `explain`; print it to see the table.

    Attributes:
        rows: One dict per parameter, of plain values that JSON can hold: ``parameter`` (its name), ``tied`` (its
            other names), ``shape``, ``dtype``, ``kind`` (matrices, embeddings, norms, biases, others), ``what`` (what
            it is more exactly), ``optimizer`` and ``group`` (numbers; None if in none), ``also_in`` (others that hold
            it too), ``decays`` (None if it could not be probed), ``why``, ``law``, ``lam``, ``lr``, ``r`` (the
            fraction that a step removes at lr, or at the peak where lr is 0), ``half_life`` in steps, and
            ``half_life_epochs`` and ``half_life_tokens`` where the numbers for them were given. None where a value
            does not exist.
        groups: One dict per parameter group: ``optimizer``, ``optimizer_name``, ``group``, ``num_parameters``,
            ``num_elements``, ``law``, ``pathway``, ``describe``, ``rule``, ``weight_decay``, ``lam``, ``lr``, ``r``,
            ``half_life``, ``notes``.
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
    model: nn.Module | None,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    steps_per_epoch: float | None = None,
    tokens_per_step: float | None = None,
    total_steps: float | None = None,
) -> Explanation:
    """Explain which parameters decay, by which law, and why, and warn of what is surprising.

    The law is not read from the optimizer's settings but found by stepping a small copy of it (see
    `halflife.identify`); an attached rule is found as well. Model and optimizer are not touched, and no tensor is
    moved: models on the meta device, sharded and quantized ones are fine. What is not in the optimizer cannot be
    seen: a penalty that the training loop adds to its loss, and step hooks of other libraries (they are named).

    Args:
        model: The model; None if there is only the optimizer, whose parameters then have no kinds.
        optimizer: The optimizer, or all those that train the model.
        steps_per_epoch: Optimizer steps in one pass over the data, for half-lives in epochs.
        tokens_per_step: Tokens that one optimizer step consumes, for half-lives in tokens.
        total_steps: The length of the run; a half-life beyond it is warned of.

    Returns:
        The table; ``print(table)`` shows it, with rich as well as without.

    Raises:
        UserError: If something else than an optimizer is given, a number is not > 0, or the model is lazy and has not
            seen its first batch.

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
    if isinstance(model, nn.Module):
        check_shapes(model.named_parameters())
    optimizers = list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]
    groups = groups_of(optimizers)
    rows = rows_of(model, groups)
    members: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rows:
        for group in set(row.groups):
            members[id(group)].append(row)
    return Explanation(
        rows=[row.plain(steps_per_epoch, tokens_per_step) for row in rows],
        groups=[group.plain(members[id(group)]) for group in groups],
        warnings=findings_of(rows, groups, list(map(unwrapped, optimizers)), total_steps=total_steps),
        parameters=tuple(rows),
    )
