"""What every rule of every study keeps to: its digest knows what it computes, equality has a stake, a best rate has a grid."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest

from halflife.studies.catalog import STUDIES
from halflife.studies.catalog.language import generalization
from halflife.studies.catalog.language.settings import LAMS
from halflife.studies.evidence.claims import Claim
from halflife.studies.evidence.quantities import Quantity
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rules import Premise, Rule
from halflife.studies.evidence.tests import EQUAL_CONFIDENCE, above

CLAIMS = {f"{study.name} {claim.key}": claim for study in STUDIES.values() for claim in study.claims}

PREDICTED = {
    "lm-generalization slope",
    *(f"bias-variance {key}" for key in ("floor", "bound-loose", "spectrum", "decay-is-a-bias")),
    *(f"timescale {key}" for key in ("batch", "tokens", "tokens-constant", "text", "width", "width-power")),
    *(f"textbook {key}" for key in ("svm-rate", "svm-norm", "svm-theory", "svm-random-rate")),
    *(f"stationary-mean {key}{of}" for key in ("prefactor", "quarter") for of in ("", "-net")),
    "stationary-mean batch",
    *(f"noise-loss {key}" for key in ("early", "early-per-jacobian", "late-one", "late-two", "late-two-per-jacobian")),
    "eta-lambda tau",
    *(
        f"disparate-scales {key}"
        for key in ("sum-bits", "neuron-offset", "neuron-bits", "softmax-form", "softmax-bits")
    ),
    *(f"lost-updates formula{of}" for of in ("", "-bits")),
    "precision-threshold one-bit",
    *(f"equilibrium {key}" for key in ("unbalanced", "late-rise", "net-gradient")),
}
"""Claims that a theory gives a number for: nothing else would give that number where nothing happens."""


def callables(value: Any) -> Iterator[Any]:
    """All functions that a rule is made of."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from callables(getattr(value, field.name))
    elif isinstance(value, functools.partial):
        yield from callables((value.func, value.args, value.keywords))
    elif isinstance(value, dict):
        yield from callables(tuple(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from callables(one)
    elif callable(value):
        yield value


def unknown_to_a_digest(rule: Rule) -> list[str]:
    """Functions whose name does not say what they do: those without one, those made in another, methods of an object."""
    found = [(getattr(f, "__qualname__", ""), getattr(f, "__self__", None)) for f in callables(rule)]
    return [name or "a nameless object" for name, owner in found if not name or "<" in name or owner is not None]


@pytest.mark.parametrize("name", CLAIMS)
def test_a_digest_knows_what_a_rule_computes(name: str) -> None:
    assert not unknown_to_a_digest(CLAIMS[name].rule)


def test_what_a_digest_does_not_know_is_found() -> None:
    def local(results: Results, size: int) -> Any:
        return np.ones(3)

    made: tuple[Callable[..., Any], ...] = (
        lambda results, size: np.ones(3),
        local,
        [].copy,
        functools.partial(lambda results, size, k: k, k=1),
    )
    for values in made:
        rule = Rule(parts=((Quantity(name="q", values=cast("Any", values)), above(0)),))
        assert unknown_to_a_digest(rule), values


def says_equal(claim: Claim) -> bool:
    return any(test.confidence == EQUAL_CONFIDENCE and len(test.fails) == 2 for _, test in claim.rule.parts)


@pytest.mark.parametrize("name", [name for name, claim in CLAIMS.items() if says_equal(claim)])
def test_that_things_are_equal_has_something_at_stake(name: str) -> None:
    assert bool(CLAIMS[name].rule.stake) is (name not in PREDICTED)


BEST_RATE = ("best rate without", "best without")


@pytest.mark.parametrize(
    "name", [n for n, claim in CLAIMS.items() if any(words in claim.effect_name for words in BEST_RATE)]
)
def test_a_best_rate_without_decay_needs_three_rates(name: str) -> None:
    """Of two rates the best is at an edge: a better one beyond it may gain as much as decay does."""
    given = [one.words for one in CLAIMS[name].rule.given if isinstance(one, Premise)]
    assert any("3 values of learning rate" in words or "3 learning rates" in words for words in given)


def test_slopes_of_language_models_count_blocks_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds read the same blocks: where blocks differ more than seeds, an interval over seeds alone is too narrow."""
    rng = np.random.default_rng(0)
    keys = [f"{kind}-{lam}-x{rate}" for kind in ("decayed", "constant") for lam in LAMS for rate in (1, 2)]
    train_KS = rng.normal(size=(12, 4)) + np.arange(12.0)[:, None]
    slope_N = 1 + rng.normal(0, 0.3, 16)
    made = generalization.Cloud(keys, train_KS, train_KS[:, :, None] * slope_N, np.zeros((2, 4)))
    monkeypatch.setattr(generalization, "cloud", lambda *args, **fields: made)
    slope = CLAIMS["lm-generalization slope"].rule.parts[0][0]
    assert not isinstance(slope, Quantity)
    monkeypatch.setattr(generalization, "models", lambda *args: [""])
    results = cast("Results", type("MadeUp", (), {"seeds": lambda self, size: [0, 1, 2, 3]})())
    found = slope.found(results, 32)[0].interval(results, 32, 0.95)
    assert (found.num_seeds, found.num_examples) == (4, 16)
    assert found.estimate == pytest.approx(slope_N.mean())
    assert found.high - found.low > 2 * slope_N.std() / 4
