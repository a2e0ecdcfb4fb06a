"""``explain``: the table of what decays, as data, as text and for rich."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from halflife.audit import view
from halflife.audit.findings import Finding, warnings_of
from halflife.audit.rows import Group, Row, groups_of, rows_of
from halflife.laws.copies import unwrapped
from halflife.units import check_positive

__all__ = ["Explanation", "as_list", "explain"]


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
        return view.text(self.rows, self.groups, [warning.text for warning in self.warnings])

    def __repr__(self) -> str:
        return str(self)

    def __rich__(self) -> Any:
        """Return what rich prints."""
        return view.Renderable(self.rows, self.groups, [warning.text for warning in self.warnings])


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
        UserError: If something else than an optimizer is given, or a number is not > 0.

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
    optimizers = as_list(optimizer)
    groups = groups_of(optimizers)
    rows = rows_of(model, groups)
    found = warnings_of(rows, groups, [unwrapped(each) for each in optimizers], total_steps=total_steps)
    return Explanation(
        rows=[_row(row, steps_per_epoch, tokens_per_step) for row in rows],
        groups=[_group(group, rows) for group in groups],
        warnings=found,
        parameters=tuple(rows),
    )


def as_list(optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """Return one optimizer or several as a list."""
    return list(optimizer) if isinstance(optimizer, Sequence) else [optimizer]


def _exact(value: float | None) -> float | None:
    """Return a measured number to the digits that probing gives."""
    return None if value is None else float(f"{value:.10g}")


def _row(row: Row, steps_per_epoch: float | None, tokens_per_step: float | None) -> dict[str, Any]:
    group, half_life = row.group, _exact(row.half_life)
    plain: dict[str, Any] = {
        "parameter": row.name,
        "tied": list(row.names[1:]),
        "shape": list(row.parameter.shape),
        "dtype": str(row.parameter.dtype).removeprefix("torch."),
        "kind": row.kind,
        "what": row.kind_reason,
        "optimizer": None if group is None else group.optimizer,
        "group": None if group is None else group.index,
        "also_in": [[each.optimizer, each.index] for each in row.groups[1:]],
        "decays": row.decays,
        "why": row.why,
        "law": None if row.law is None else row.law.name or row.law.pathway,
        "lam": group.lam if group is not None and row.decays else None,
        "lr": None if group is None else group.lr,
        "r": _exact(row.r),
        "half_life": half_life,
    }
    if steps_per_epoch is not None:
        plain["half_life_epochs"] = None if half_life is None else half_life / steps_per_epoch
    if tokens_per_step is not None:
        plain["half_life_tokens"] = None if half_life is None else half_life * tokens_per_step
    return plain


def _group(group: Group, rows: Sequence[Row]) -> dict[str, Any]:
    mine = [row for row in rows if group in row.groups]
    decaying = next((row for row in mine if row.decays), None)
    return {
        "optimizer": group.optimizer,
        "optimizer_name": group.optimizer_name,
        "group": group.index,
        "num_parameters": len(mine),
        "num_elements": sum(row.parameter.numel() for row in mine),
        "law": group.law.name or group.law.pathway,
        "pathway": group.law.pathway,
        "describe": group.law.describe(),
        "rule": group.rule,
        "weight_decay": group.weight_decay,
        "lam": group.lam,
        "lr": group.lr,
        "r": None if decaying is None else _exact(decaying.r),
        "half_life": None if decaying is None else _exact(decaying.half_life),
        "notes": list(group.law.notes),
    }
