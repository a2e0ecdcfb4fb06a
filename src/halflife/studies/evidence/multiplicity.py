"""Many verdicts at once: how many distinct tests decide them, how many may err by chance, and which stand if none may.

Every interval errs as often as its confidence says, and over a table of verdicts these errors add up. So beside the plain
marks there is one that keeps the chance of *any* wrong decision in the table at 5 % (Holm 1979, "A simple sequentially
rejective multiple test procedure", Scandinavian Journal of Statistics 6(2)), whatever the tests have to do with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from halflife.studies.evidence.claims import Verdict
from halflife.studies.evidence.rules import Finding, Row
from halflife.studies.evidence.stats import CONFIDENCE, LEVEL, Interval

__all__ = ["Multiplicity", "decision_of", "holm", "multiplicity_of", "name_of"]

Name = tuple[str, str, str]
DIGITS = 9  # to which two intervals are one and the same


def name_of(verdict: Verdict) -> Name:
    """Study, preset and the claim's key."""
    return verdict.study, verdict.preset, verdict.claim.key


def decision_of(finding: Finding) -> tuple[Row, float] | None:
    """What a finding rests on: the row of its table that decides, or would with a narrower interval, and the p value of that.

    That all parts hold is as sure as the least sure of them; that one fails, as the surest, which counts the others.

    Args:
        finding: The finding of a rule.

    Returns:
        The row, and a p below 0.05 where the finding is decided (``None``: it is not tested, or a p is not known).
    """
    parts = [row for row in finding.rows if row.role == "part"]
    holds = [(row, row.p_holds) for row in parts if row.p_holds is not None]
    fails = [(row, row.p_fails) for row in parts if row.p_fails is not None]
    if finding.outcome == "not tested" or not parts or not len(parts) == len(holds) == len(fails):
        return None
    all_hold = max(holds, key=itemgetter(1))
    if finding.outcome == "reproduced":
        return all_hold
    one_fails = min((found for found in fails if found[0].outcome != "holds"), key=itemgetter(1))
    return one_fails if finding.outcome == "not reproduced" else min(all_hold, one_fails, key=itemgetter(1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: those below a level are wrong together no more often than that.

    Args:
        p_values: The p values.

    Returns:
        As many, in the same order: of the i-th smallest of m the largest (m - j + 1) p_j with j <= i, at most 1.

    Examples:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    return [min(1.0, max(floor, ways * p)) for (ways, floor), p in zip(_holm_steps(p_values), p_values, strict=True)]


def _holm_steps(p_values: Sequence[float]) -> list[tuple[int, float]]:
    """For each p value by how much it is multiplied, and the largest product among smaller ones."""
    steps, largest = [(0, 0.0)] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        steps[index] = len(p_values) - place, largest
        largest = max(largest, (len(p_values) - place) * p_values[index])
    return steps


@dataclass(frozen=True, kw_only=True)
class Multiplicity:
    """What a table of verdicts is as a whole.

    Args:
        num_verdicts: Verdicts that were tested.
        num_decided: Of these, those that are reproduced or not.
        num_tests: Distinct tests: verdicts that rest on one and the same interval count once.
        most_wrong: Upper bound of the expected number of wrong decisions: over distinct tests, the chance that an interval
            lies beyond a bound on the wrong side, (1 - confidence) / 2 each.
        adjusted: Holm's adjusted p per verdict, by `name_of` (``None``: it has no p).
        stand: The decisions that stand when the chance of any wrong one is to be 5 %.
    """

    num_verdicts: int
    num_decided: int
    num_tests: int
    most_wrong: float
    adjusted: Mapping[Name, float | None]
    stand: frozenset[Name]

    @property
    def words(self) -> str:
        """Two sentences for above the table."""
        return (
            f"{self.num_verdicts} verdicts rest on {self.num_tests} distinct tests, of which at most {self.most_wrong:.1f} are"
            f" expected to decide wrongly by chance. {len(self.stand)} of the {self.num_decided} decisions stand when the"
            " chance that any of them is wrong is to be 5 % (Holm)."
        )


def multiplicity_of(verdicts: Sequence[Verdict]) -> Multiplicity:
    """Count distinct tests over verdicts, and adjust for their number.

    Claims about one number are one test, whatever their bounds: where one of them is decided wrongly, its interval misses.

    Args:
        verdicts: All that a page shows together.

    Returns:
        The counts, and the adjusted p values.
    """
    tested = [verdict for verdict in verdicts if verdict.finding.outcome != "not tested"]
    groups: dict[object, dict[Name, float]] = {}
    chances: dict[object, float] = {}
    for verdict in tested:
        name, decision = name_of(verdict), decision_of(verdict.finding)
        interval = verdict.finding.effect if decision is None else decision[0].interval
        number = name if interval is None else _number(interval)
        groups.setdefault(number, {}).update({} if decision is None else {name: decision[1]})
        chances[number] = (1 - (CONFIDENCE if decision is None else decision[0].confidence)) / 2
    # A test whose p is not known counts as one, too: the others are adjusted for it.
    least = [min(members.values(), default=1.0) for members in groups.values()]
    adjusted: dict[Name, float | None] = {name_of(verdict): None for verdict in tested}
    for (ways, floor), members in zip(_holm_steps(least), groups.values(), strict=True):
        adjusted |= {name: min(1.0, max(floor, ways * p)) for name, p in members.items()}
    decided = [name_of(verdict) for verdict in tested if verdict.finding.outcome != "undecided"]
    return Multiplicity(
        num_verdicts=len(tested),
        num_decided=len(decided),
        num_tests=len(groups),
        most_wrong=sum(chances.values()),
        adjusted=adjusted,
        stand=frozenset(name for name in decided if (p := adjusted[name]) is not None and p < LEVEL),
    )


def _number(interval: Interval) -> tuple[str, ...]:
    """An interval whatever its confidence: claims with the same are about one number."""
    ends = (interval.low, interval.high) if interval.standard_error is None else (interval.standard_error,)
    return tuple(f"{value:.{DIGITS}g}" for value in (interval.estimate, *ends))
