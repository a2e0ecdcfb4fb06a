"""p values against the rules' own outcomes, Holm's against its definition, and how often a table errs.

Shapes: S seeds.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from halflife.studies.evidence.claims import Claim, Finding, Row, Rule, Verdict
from halflife.studies.evidence.multiplicity import decision_of, holm, multiplicity_of, name_of
from halflife.studies.evidence.quantities import Quantity
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval
from halflife.studies.evidence.tests import Test, above, below, differs, lowered, within, within_factor

SIZE = 8
Numbers = NDArray[np.float64]


class Seeds:
    """Results of so many seeds."""

    def __init__(self, count: int) -> None:
        self.count = count

    def seeds(self, size: int) -> list[int]:
        return list(range(self.count))


def _quantity(name: str, values_S: Numbers, *, log: bool = False) -> Quantity:
    return Quantity(name=name, values=lambda results, size: values_S, log=log)


def _verdict(key: str, *parts: tuple[Numbers, Test], log: bool = False) -> Verdict:
    """A claim whose parts are these values and tests, decided."""
    named = tuple((_quantity(f"x{i}", values_S, log=log), test) for i, (values_S, test) in enumerate(parts))
    claim = Claim(key=key, text=f"claim {key}", rule=Rule(parts=named))
    found = claim.decide(cast("Results", Seeds(len(parts[0][0]))), SIZE)
    return Verdict(study="study", preset="laptop", claim=claim, finding=found)


def _p(verdict: Verdict) -> float:
    decision = decision_of(verdict.finding)
    assert decision is not None
    return decision[1]


@pytest.mark.parametrize("seed", range(8))
def test_p_is_below_5_percent_exactly_where_the_rule_decides(seed: int) -> None:
    """One to three parts of every kind, near their bounds."""
    rng = np.random.default_rng(seed)
    tests = [above(0.1), below(-0.1), within(0.5), lowered(0.2), differs(0.3)]
    decided = 0
    for _ in range(40):
        parts = [
            (rng.normal(rng.uniform(-1, 1), 0.5, 5), tests[rng.integers(len(tests))]) for _ in range(rng.integers(1, 4))
        ]
        verdict = _verdict("a", *parts)
        assert (_p(verdict) < 0.05) == (verdict.finding.outcome != "undecided"), verdict.finding
        decided += verdict.finding.outcome != "undecided"
    assert 3 < decided < 37


def test_p_on_a_log_scale_is_that_of_the_logarithms() -> None:
    values_S = np.array([1.3, 1.1, 1.6, 1.2, 1.4])
    plain = _p(_verdict("a", (np.log(values_S), above(math.log(1.05)))))
    assert _p(_verdict("a", (values_S, above(1.05)), log=True)) == pytest.approx(plain)
    assert _p(_verdict("a", (values_S, above(-1.0)), log=True)) == 0
    # A factor of 2: two one-sided tests at 5 %.
    low, high = (_p(_verdict("a", (np.log(values_S), test))) for test in (above(-math.log(2)), below(math.log(2))))
    assert _p(_verdict("a", (values_S, within_factor(2.0)), log=True)) == pytest.approx(max(low, high) / 2)


def _holm_by_steps(p_values: list[float], level: float) -> list[bool]:
    """Reject the smallest while it is below level over the number that is left."""
    left, rejected = sorted(range(len(p_values)), key=lambda i: p_values[i]), [False] * len(p_values)
    while left and p_values[left[0]] < level / len(left):
        rejected[left.pop(0)] = True
    return rejected


def test_holms_p_is_below_a_level_where_his_steps_reject() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        p_values = (rng.random(6) ** 3).tolist()
        for level in (0.01, 0.05, 0.2):
            assert [p < level for p in holm(p_values)] == _holm_by_steps(p_values, level)
    assert holm([]) == []


def test_claims_of_one_number_are_one_test() -> None:
    rng = np.random.default_rng(2)
    one_S, other_S = rng.normal(3, 1, 5), rng.normal(0, 1, 5)
    verdicts = [_verdict("a", (one_S, above(0))), _verdict("b", (one_S, below(9))), _verdict("c", (other_S, above(2)))]
    found = multiplicity_of(verdicts)
    assert (found.num_verdicts, found.num_tests) == (3, 2)
    p = {verdict.claim.key: _p(verdict) for verdict in verdicts}
    least, most = sorted([min(p["a"], p["b"]), p["c"]])
    expected = {key: 2 * p[key] if least in {p["a"], p["b"]} else max(2 * p["c"], p[key]) for key in "ab"}
    expected["c"] = max(2 * least, most) if most == p["c"] else 2 * p["c"]
    for key, value in expected.items():
        assert found.adjusted["study", "laptop", key] == pytest.approx(min(1, value))


def test_the_number_of_wrong_decisions_is_bounded_by_the_confidences() -> None:
    rng = np.random.default_rng(3)
    verdicts = [_verdict("a", (rng.normal(size=5), above(0))), _verdict("b", (rng.normal(size=5), within(0.1)))]
    assert multiplicity_of(verdicts).most_wrong == pytest.approx(0.025 + 0.05)


def test_what_is_not_tested_or_has_no_standard_error_has_no_p() -> None:
    sure = _verdict("a", (np.array([1.0, 1.01, 1.02, 0.99]), above(0)))
    bare = Interval(1.0, 0.9, 1.1, 3)
    row = Row(role="part", quantity="x", unit="", test="lies above 0", interval=bare, outcome="holds")
    unknown = Verdict(study="study", preset="night", claim=sure.claim, finding=Finding("reproduced", bare, "", (row,)))
    untested = Verdict(study="t", preset="p", claim=sure.claim, finding=Finding("not tested", None, "no", ()))
    found = multiplicity_of([sure, unknown, untested])
    assert decision_of(unknown.finding) is decision_of(untested.finding) is None
    assert (found.num_verdicts, found.num_decided, found.num_tests) == (2, 2, 2)
    assert found.adjusted == {("study", "laptop", "a"): pytest.approx(2 * _p(sure)), ("study", "night", "a"): None}
    assert found.stand == {("study", "laptop", "a")}
    assert found.words == (
        "2 verdicts rest on 2 distinct tests, of which at most 0.1 are expected to decide wrongly by chance. 1 of the 2"
        " decisions stand when the chance that any of them is wrong is to be 5 % (Holm)."
    )


def test_a_table_of_true_bounds_errs_as_often_as_it_says() -> None:
    """Twelve claims whose quantities lie at their bounds, so that every decision of one kind is wrong."""
    rng, trials, count = np.random.default_rng(4), 60, 12
    wrong, tables = 0, 0
    for _ in range(trials):
        verdicts = [_verdict(str(i), (rng.normal(size=5), above(0))) for i in range(count)]
        found = multiplicity_of(verdicts)
        decided_up = [v for v in verdicts if v.finding.outcome == "reproduced"]
        wrong += len(decided_up)
        tables += any(name_of(v) in found.stand for v in decided_up)
    bound = 0.025 * count
    assert wrong / trials == pytest.approx(bound, abs=3.5 * math.sqrt(bound / trials))
    assert tables / trials < 0.025 + 3.5 * math.sqrt(0.025 * 0.975 / trials)


def test_an_undecided_part_says_how_many_seeds_would_decide() -> None:
    values_S = np.array([1.0, -0.4, 0.9, 0.3, -0.2])
    found = _verdict("a", (values_S, above(0))).finding
    assert found.outcome == "undecided"
    spread, count = values_S.std(ddof=1), 5
    while scipy_stats.t.ppf(0.975, count - 1) * spread / math.sqrt(count) >= values_S.mean():
        count += 1
    assert found.reason.endswith(f"; {count} seeds would decide if estimate and spread stayed")
