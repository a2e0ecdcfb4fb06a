"""The whole table: which cases there are, running them, and what a reader sees of the outcomes."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from halflife.errors import UserError
from halflife.selfcheck.bad_inputs import BAD_INPUTS, answer
from halflife.selfcheck.optimizers import OPTIMIZERS, Variant, variants
from halflife.selfcheck.rules import RULES, RuleCase
from halflife.selfcheck.twin import DTYPES, Outcome, run_case

__all__ = ["FAMILIES", "Case", "Report", "cell_of", "check_device", "plan", "reasons", "run_table", "versions"]

FAMILIES = list(dict.fromkeys(rule.family for rule in RULES))

Case = tuple[RuleCase, Variant, torch.dtype]


@dataclass
class Report:
    """What running the table gave.

    Args:
        device: Where it ran.
        outcomes: One per case.
        wrong_answers: What is wrong with the answer to a bad input, by its name.
        num_bad_inputs: How many were tried.
        seconds: How long it took.
    """

    device: str
    outcomes: list[Outcome] = field(default_factory=list)
    wrong_answers: dict[str, str] = field(default_factory=dict)
    num_bad_inputs: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> list[Outcome]:
        """The cases that do not hold."""
        return [outcome for outcome in self.outcomes if outcome.status == "FAILED"]

    @property
    def holds(self) -> bool:
        """Whether everything does."""
        return not self.failed and not self.wrong_answers


def check_device(name: str) -> torch.device:
    """Return a device that can compute.

    Args:
        name: Its name, as torch has it.

    Returns:
        The device.

    Raises:
        UserError: If torch does not know it, or it is not there.
    """
    try:
        device = torch.device(name)
        found = float(torch.ones(1, device=device).sum())
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f"the device {name!r} cannot be used here: {first}; choose one that this torch has, as cpu"
        ) from error
    if found != 1.0:
        raise UserError(f"the device {name!r} does not compute; choose another, as cpu")
    return device


def plan(device: torch.device | str = "cpu", *, quick: bool = False) -> list[Case]:
    """List the cases that make sense on a device.

    Args:
        device: The device.
        quick: Whether the first variant of each rule in float32 is enough.

    Returns:
        The cases, optimizer by optimizer.
    """
    double = torch.device(device).type != "mps"
    firsts = [next(rule for rule in RULES if rule.family == family) for family in FAMILIES]
    return [
        (rule, variant, dtype)
        for variant in variants(device)
        for rule in (firsts if quick else RULES)
        for dtype in DTYPES
        if dtype == torch.float32
        or (not quick and ((dtype == torch.float64 and double) or (dtype != torch.float64 and rule.everywhere)))
    ]


def run_table(
    cases: Sequence[Case], device: torch.device | str = "cpu", listen: Callable[[Outcome], None] = lambda outcome: None
) -> Report:
    """Run cases, and every bad input.

    Args:
        cases: What to run, from `plan`.
        device: Where.
        listen: Called after each case.

    Returns:
        What they gave.
    """
    start = time.perf_counter()
    report = Report(str(device), num_bad_inputs=len(BAD_INPUTS))
    for bad in BAD_INPUTS:
        wrong = answer(bad)
        if wrong is not None:
            report.wrong_answers[bad.name] = wrong
    for rule, variant, dtype in cases:
        outcome = run_case(rule, variant, dtype, device)
        report.outcomes.append(outcome)
        listen(outcome)
    report.seconds = time.perf_counter() - start
    return report


def cell_of(outcomes: Iterable[Outcome], optimizer: str, family: str) -> str:
    """Sum up the cases of one optimizer and one family of rules.

    Args:
        outcomes: All outcomes.
        optimizer: Name of the optimizer.
        family: A name of `FAMILIES`.

    Returns:
        ``"ok"``, ``"refused"`` as documented, ``"FAILED"``, or ``""`` where nothing was run. Where some variants
        of a rule are refused (those that need a setting which the optimizer lacks) and the others hold, ``"ok"``.
    """
    rules = {rule.name for rule in RULES if rule.family == family}
    names = {
        optimizer,
        *(f"{optimizer} ({form})" for case in OPTIMIZERS if case.name == optimizer for form in case.forms),
    }
    found = {each.status for each in outcomes if each.rule in rules and each.optimizer in names}
    return next((status for status in ("FAILED", "ok", "refused") if status in found), "")


def reasons(outcomes: Iterable[Outcome], family: str) -> dict[str, list[str]]:
    """Tell why optimizers refuse every rule of a family.

    Args:
        outcomes: All outcomes.
        family: A name of `FAMILIES`.

    Returns:
        Names of optimizers by a part of the sentence.
    """
    found: dict[str, list[str]] = {}
    outcomes = list(outcomes)
    for case in OPTIMIZERS:
        if cell_of(outcomes, case.name, family) == "refused":
            first = next(rule for rule in RULES if rule.family == family)
            found.setdefault(first.refused(case) or "", []).append(case.name)
    return found


def versions(device: torch.device | str = "cpu") -> dict[str, str]:
    """Return the versions and the device that the outcomes hold for."""
    found = {"torch": torch.__version__, "python": platform.python_version(), "device": str(device)}
    if torch.device(device).type == "cuda":
        found["device"] = f"{device}: {torch.cuda.get_device_name(device)}"
    return found
