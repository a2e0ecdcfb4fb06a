"""What may stand inside what, on optimizers: the table of `tests/rules/test_grammar.py`, attached."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.optim import SGD

from halflife.optim.attaching import attach
from halflife.rules import Stable
from tests.oracles.cases import own_pass_only
from tests.rules.test_grammar import NUM_GROUPS, PAIRS, PEAK, RATES, REFERENCE, Term, allowed, wrapped

ALLOWED = [
    (wrapper, term)
    for wrapper, term in PAIRS
    if allowed(wrapper, term) and not any(isinstance(part, Stable) for part in term.part.parts())
]


GRADIENTS = (2.0, -1.5, 8.0, 0.0, -3.0)  # the weights change sign, and grow and shrink


@pytest.mark.parametrize("native", [True, False], ids=["native", "own pass"])
@pytest.mark.parametrize(("wrapper", "term"), ALLOWED, ids=[f"{wrapper}({term.part!r})" for wrapper, term in ALLOWED])
def test_every_allowed_pair_acts_as_in_plain_numbers(wrapper: str, term: Term, native: bool) -> None:
    whole = wrapped(wrapper, term)
    weights = [torch.nn.Parameter(torch.tensor([REFERENCE], dtype=torch.float64)) for _ in range(NUM_GROUPS)]
    optimizer = SGD([{"params": [weight]} for weight in weights], lr=RATES[0], weight_decay=9.0)
    expected = [REFERENCE] * NUM_GROUPS
    with nullcontext() if native else own_pass_only():
        attach(optimizer, whole.part, peak_lr=PEAK)  # type: ignore[arg-type]  # any part
        for step, (lr, gradient) in enumerate(zip(RATES, GRADIENTS, strict=True)):
            for group, weight in zip(optimizer.param_groups, weights, strict=True):
                group["lr"] = lr
                weight.grad = torch.full_like(weight, gradient)
            optimizer.step()
            for index, acts in enumerate(whole.groups):
                expected[index] = acts.weight_after(expected[index], lr * gradient, step, lr)
            found = [weight.item() for weight in weights]
            assert found == pytest.approx(expected, rel=1e-12)
