"""The equilibria against training on noise, within 3 %, and against the forms that papers print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from halflife.errors import UserError
from halflife.schedules import cosine
from halflife.theory import (
    Equilibrium,
    adam_l2,
    adams,
    adamw,
    cautious_adamw,
    lion,
    muon,
    relaxation_steps,
    sgd,
    sgds,
    sgdw,
)
from tests import needs_muon
from tests.theory import noise
from tests.theory.noise import Walk, column, walk

TOLERANCE = 0.03
DIM = 512
START = 1.3  # times the predicted norm: relaxation has to find it


def run(
    optimizer: noise.Optimizer,
    predicted: Sequence[Equilibrium],
    sizes: Sequence[float] | None = None,
    *,
    num_weights: int = DIM,
    steps: int = 2_400,
    skip: int = 800,
) -> Walk:
    start = column(*(START * each.norm for each in predicted))
    return walk(optimizer, column(*(sizes or [1.0] * len(predicted))), start, num_weights, steps=steps, skip=skip)


def agree(measured: Walk, predicted: Sequence[Equilibrium], tolerance: float = TOLERANCE) -> None:
    for name in ("norm", "rotation", "gradient_to_weight"):
        expected = torch.tensor([getattr(each, name) for each in predicted], dtype=torch.float64)
        ratio = getattr(measured, name) / expected
        assert float((ratio - 1).abs().max()) < tolerance, f"{name}: measured / predicted {ratio.tolist()}"


# lr, lam, size of the gradients, momentum
SGD = ((0.1, 0.1, 1.0, 0.0), (0.05, 0.02, 3.0, 0.9), (0.2, 0.01, 0.5, 0.9), (0.1, 0.05, 1.0, 0.5))


@pytest.mark.parametrize("nesterov", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sgd_with_a_penalty(nesterov: bool) -> None:
    lr, lam, sizes, momentum = (column(*values) for values in zip(*SGD, strict=True))
    predicted = [sgd(lr, lam, size, momentum=mu, nesterov=nesterov) for lr, lam, size, mu in SGD]
    optimizer = noise.sgd(lr, momentum, lam=lam, nesterov=nesterov)
    agree(run(optimizer, predicted, sizes[:, 0].tolist()), predicted, 0.02 if nesterov else 0.01)


def test_sgd_with_decoupled_decay() -> None:
    """SGDW at the lam of the row over 1 - mu, where it decays as fast."""
    lr, lam, sizes, momentum = (column(*values) for values in zip(*SGD, strict=True))
    predicted = [sgdw(lr, lam / (1 - mu), size, momentum=mu) for lr, lam, size, mu in SGD]
    measured = run(noise.sgd(lr, momentum, r=lr * lam / (1 - momentum)), predicted, sizes[:, 0].tolist())
    agree(measured, predicted, 0.02)
    assert [sgds(lr, lam, size, momentum=mu) for lr, lam, size, mu in SGD] == predicted


BETA1 = (0.0, 0.9, 0.9, 0.5)
LR, LAM = 0.02, 0.5


@pytest.mark.parametrize("law", ["adamw", "cautious"])
def test_adam_with_decoupled_decay(law: str) -> None:
    """The sizes of gradients differ by a factor of 100, and the formulas do not have them."""
    beta1 = column(*BETA1)
    shrink = LR * LAM
    if law == "adamw":
        predicted = [adamw(LR, LAM, DIM, beta1=each) for each in BETA1]
        optimizer = noise.adam(column(LR), beta1, decayed=lambda w, u, v, t: (1 - shrink) * w)
    else:
        shrink /= 4
        predicted = [cautious_adamw(LR, LAM / 4, DIM, beta1=each) for each in BETA1]
        optimizer = noise.adam(column(LR), beta1, decayed=lambda w, u, v, t: w - shrink * w * (u * w >= 0))
    agree(run(optimizer, predicted, (1.0, 0.1, 10.0, 1.0)), predicted)


def test_adam_with_a_penalty_turns_small_gradients_more() -> None:
    beta1, sizes = (0.0, 0.9, 0.9, 0.9), (10.0, 3.0, 10.0, 30.0)
    predicted = [adam_l2(LR, 0.3, DIM, size, beta1=each) for each, size in zip(beta1, sizes, strict=True)]
    measured = run(noise.adam(column(LR), column(*beta1), lam=0.3), predicted, sizes)
    agree(measured, predicted)
    assert float(measured.rotation[1] / measured.rotation[3]) == pytest.approx(10 ** (1 / 3), rel=TOLERANCE)


def test_stable_decay_of_adam_balances_layers() -> None:
    """Two rows are the layers of one net, whose second moment is a mean over both."""
    lam, sizes = 0.05, (0.3 * math.sqrt(DIM), 3.0 * math.sqrt(DIM))
    second_moment = (2 * lam / LR * (0.3**2 + 3.0**2) / (2 * DIM)) ** (2 / 3)  # as the docstring says
    predicted = [adams(LR, lam, DIM, second_moment)] * 2
    means = []

    def decayed(weights: Tensor, update: Tensor, v: Tensor, step: int) -> Tensor:
        means.append(float(v.mean()))
        return (1 - LR * lam / math.sqrt(v.mean())) * weights

    measured = run(noise.adam(column(LR), column(0.9, 0.9), decayed=decayed), predicted, sizes)
    assert sum(means[800:]) / 1_600 == pytest.approx(second_moment, rel=2 * TOLERANCE)
    agree(measured, predicted)


LION = ((0.9, 0.99), (0.9, 0.95), (0.0, 0.99), (0.95, 0.98))


def test_lion() -> None:
    beta1, beta2 = (column(*values) for values in zip(*LION, strict=True))
    predicted = [lion(LR, LAM, DIM, beta1=one, beta2=two) for one, two in LION]
    agree(run(noise.lion(column(LR), column(LAM), beta1, beta2), predicted), predicted, 0.02)


def published_lion(lr: float, lam: float, beta1: float, beta2: float) -> float:
    """Kosson et al.: the rotation."""
    return math.sqrt(math.pi * lr * lam) * math.sqrt((1 - beta1) ** 2 + beta1**2 * (1 - beta2) / (1 + beta2))


@pytest.mark.parametrize(
    ("lr", "lam", "betas", "off"),
    [(1e-4, 1.0, (0.9, 0.99), -0.003), (1e-4, 1.0, (0.95, 0.98), -0.026), (1e-4, 1.0, (0.0, 0.99), -0.202),
     (1e-2, 0.5, (0.9, 0.99), 0.207)],
)  # fmt: skip
def test_how_far_the_published_norm_of_lion_is_off(lr: float, lam: float, betas: Any, off: float) -> None:
    published = lr / published_lion(lr, lam, *betas)
    assert published / lion(lr, lam, 1, beta1=betas[0], beta2=betas[1]).norm - 1 == pytest.approx(off, abs=0.002)


@pytest.mark.parametrize(
    ("beta1", "beta2"), [(0.9, 0.99), (0.0, 0.9), (0.9, 0.0), (0.5, 0.5), (0.999, 0.999), (0.98**2, 0.98)]
)
def test_the_sum_of_lion_is_that_of_its_correlations(beta1: float, beta2: float) -> None:
    """Term by term, from the weights that c gives to past gradients."""
    num, lr, lam, d = 20_000, 0.01, 0.2, 7
    given = [1 - beta1] + [beta1 * (1 - beta2) * beta2**k for k in range(num)]
    weights = torch.tensor(given, dtype=torch.float64)
    spectrum = torch.fft.rfft(weights, 4 * num)
    rho = torch.fft.irfft(spectrum.abs().square(), 4 * num)[:num] / weights.square().sum()
    a = 1 - lr * lam
    kept = a ** torch.arange(1, num)
    total = float((kept * 2 / math.pi * torch.asin(rho[1:].clamp(-1, 1))).sum())
    expected = lr * math.sqrt(d * (1 + 2 * total) / (1 - a**2))
    assert lion(lr, lam, d, beta1=beta1, beta2=beta2).norm == pytest.approx(expected, rel=1e-5)


MATRIX: dict[str, Any] = {"lr": 0.1, "lam": 0.1}


def published_muon(lr: float, lam: float, rows: int, columns: int, *, momentum: float) -> float:
    """The hyperball paper: the norm."""
    a = 1 - lr * lam
    return lr * math.sqrt(rows) * math.sqrt((1 + a * momentum) / ((1 - a**2) * (1 - a * momentum)))


@pytest.mark.parametrize(
    ("shape", "momentum", "nesterov"),
    [
        ((8, 64), 0.9, False),
        pytest.param((8, 64), 0.95, True, marks=pytest.mark.slow),
        pytest.param((16, 32), 0.95, True, marks=pytest.mark.slow),
        pytest.param((24, 24), 0.0, False, marks=pytest.mark.slow),
        pytest.param((24, 24), 0.95, False, marks=pytest.mark.slow),
        pytest.param((24, 24), 0.95, True, marks=pytest.mark.slow),
    ],
)
def test_muon(shape: tuple[int, int], momentum: float, nesterov: bool) -> None:
    predicted = [muon(**MATRIX, rows=shape[0], columns=shape[1], momentum=momentum, nesterov=nesterov)] * 2
    optimizer = noise.muon(**MATRIX, shape=shape, momentum=momentum, nesterov=nesterov)
    agree(run(optimizer, predicted, num_weights=math.prod(shape), steps=1_500, skip=300), predicted)


@pytest.mark.parametrize(
    ("shape", "nesterov", "off"), [((8, 64), False, 0.01), ((512, 512), False, 0.14), ((512, 512), True, 0.25)]
)
def test_how_far_the_published_norm_of_muon_is_off(shape: tuple[int, int], nesterov: bool, off: float) -> None:
    computed = muon(2e-3, 0.1, *shape, nesterov=nesterov).norm
    assert published_muon(2e-3, 0.1, *shape, momentum=0.95) / computed - 1 == pytest.approx(off, abs=0.01)


def test_scales_of_muon() -> None:
    """Norms of updates as torch scales them, times an orthogonalized matrix's norm, sqrt(min(rows, columns))."""
    for rows, columns in ((64, 16), (16, 64)):
        size = math.sqrt(min(rows, columns))
        plain, matched = (
            muon(**MATRIX, rows=rows, columns=columns, scaling=scaling) for scaling in ("original", "match_rms_adamw")
        )
        for at, scale in ((plain, math.sqrt(max(1, rows / columns))), (matched, 0.2 * math.sqrt(max(rows, columns)))):
            assert at.gradient_to_weight * at.norm == pytest.approx(scale * size)
        assert plain.rotation == pytest.approx(matched.rotation)


# ---- the forms that papers print

RATES = {
    "lr": st.floats(1e-5, 1.0),
    "r": st.floats(1e-10, 1e-4),
    "size": st.floats(1e-3, 1e3),
    "mu": st.floats(0.0, 0.95),
}


@given(**RATES)
def test_first_order(lr: float, r: float, size: float, mu: float) -> None:
    lam, d = r / lr, size**2
    at = sgd(lr, lam, size, momentum=mu)
    assert at.norm**4 == pytest.approx(lr * size**2 / (2 * lam * (1 - mu)), rel=1e-3)
    assert at.rotation == pytest.approx(math.sqrt(2 * r / (1 + mu)), rel=1e-3)
    assert at.gradient_to_weight == pytest.approx(math.sqrt(2 * lam * (1 - mu) / lr), rel=1e-3)
    stable = sgds(lr, lam, size, momentum=mu, dampening=0.5 if mu else 0.0)
    assert stable.norm == pytest.approx(sgd(lr, lam, size, momentum=mu, dampening=0.5).norm, rel=1e-2)
    assert stable.rotation == pytest.approx(sgd(lr, lam, size, momentum=mu, dampening=0.5).rotation, rel=1e-2)
    assert stable.relaxation == pytest.approx(sgd(lr, lam, size, momentum=mu, dampening=0.5).relaxation)
    at = sgdw(lr, lam, size, momentum=mu)
    assert at.norm**4 == pytest.approx(lr * size**2 / (2 * lam * (1 - mu) ** 2), rel=1e-2)
    assert at.rotation == pytest.approx(math.sqrt(2 * r * (1 - mu) / (1 + mu)), rel=1e-2)
    at = adamw(lr, lam, d, beta1=mu)
    assert at.norm == pytest.approx(math.sqrt(lr * d / (2 * lam)), rel=1e-2)
    assert at.rotation == pytest.approx(math.sqrt(2 * r * (1 - mu) / (1 + mu)), rel=1e-2)
    assert at.gradient_to_weight == pytest.approx(math.sqrt(2 * lam / lr), rel=1e-2)
    assert adams(lr, lam, d, 0.25, beta1=mu) == adamw(lr, lam / 0.5, d, beta1=mu)
    spread = size / 3.0
    at = adam_l2(lr, lam, d, spread * size, beta1=mu)
    assert at.norm == pytest.approx((lr * d * spread / (2 * lam)) ** (1 / 3), rel=1e-9)
    expected = math.sqrt((1 - mu) / (1 + mu)) * (2 * lr**2 * lam * size / spread) ** (1 / 3)
    rms = spread / at.norm  # of the gradients' elements: a penalty of lam is decoupled decay of lam / rms
    assert at.norm == pytest.approx(adamw(lr, lam / rms, d, beta1=0.0).norm, rel=1e-9 + lr * lam / rms)
    if at.rotation < 1e-2:
        assert at.rotation == pytest.approx(expected, rel=1e-3)


@given(lr=st.floats(1e-4, 1.0), r=st.floats(1e-6, 0.5), mu=st.floats(0.0, 0.95), d=st.integers(1, 10_000))
def test_exact_forms(lr: float, r: float, mu: float, d: int) -> None:
    """As the hyperball paper prints them."""
    a, at = 1 - r, adamw(lr, r / lr, d, beta1=mu)
    size = math.sqrt(d * (1 - mu) / (1 + mu))
    assert at.norm == pytest.approx(lr * size * math.sqrt((1 + a * mu) / ((1 - a**2) * (1 - a * mu))), rel=1e-9)
    angle = math.sqrt((1 - a**2) * (1 - mu**2)) / (1 + a * mu)
    assert math.sin(at.rotation) == pytest.approx(angle, rel=1e-9)


def test_a_share_that_is_given_takes_the_place_of_the_computed_one() -> None:
    at, plain = cautious_adamw(1e-3, 0.1, 100, share=0.25), adamw(1e-3, 0.1, 100)
    assert at.norm == pytest.approx(2 * plain.norm, rel=1e-3)
    assert at.relaxation == pytest.approx(4 * plain.relaxation)


# ---- numbers that docstrings quote


@pytest.mark.slow
def test_how_far_off_a_short_second_moment_is() -> None:
    """beta2 = 0.95: 1 % of the norm with beta1 = 0.9, and 2 % without."""
    betas = (0.0, 0.9)
    predicted = [adamw(LR, 0.25, 2048, beta1=each) for each in betas]
    optimizer = noise.adam(column(LR), column(*betas), beta2=0.95, decayed=lambda w, u, v, t: (1 - LR * 0.25) * w)
    norm = run(optimizer, predicted, num_weights=2048, steps=4_000).norm
    assert [float(norm[i]) / predicted[i].norm for i in (0, 1)] == pytest.approx([0.98, 0.99], abs=0.006)


@pytest.mark.slow
def test_how_far_off_a_strong_penalty_is() -> None:
    """Fractions of 0.05 and 0.28: half a percent, and 2.5 %."""
    settings = ((0.04, 0.25), (0.02, 0.01))
    predicted = [adam_l2(LR, lam, 256, size, beta1=0.0) for lam, size in settings]
    assert [1 / (3 * each.relaxation) for each in predicted] == pytest.approx([0.051, 0.276], abs=1e-3)
    for each, (lam, size) in zip(predicted, settings, strict=True):
        assert (lam * each.norm**2 / size) ** 2 == pytest.approx(1 / (3 * each.relaxation) / 2)
    lams, sizes = zip(*settings, strict=True)
    optimizer = noise.adam(column(LR), column(0.0, 0.0), beta2=0.999, lam=column(*lams))
    norm = run(optimizer, predicted, sizes, num_weights=256, steps=10_000, skip=4_000).norm
    assert [float(norm[i]) / predicted[i].norm for i in (0, 1)] == pytest.approx([1.004, 1.024], abs=0.004)


@pytest.mark.slow
def test_the_share_that_decays_is_not_the_share_of_weights_that_do() -> None:
    """At lr lam = 0.005 and beta1 = 0.9: 0.455 of the weights, and a q of 0.375."""
    at, counts = cautious_adamw(LR, 0.25, 256), []

    def decayed(weights: Tensor, update: Tensor, v: Tensor, step: int) -> Tensor:
        mask = update * weights >= 0
        counts.append(float(mask.double().mean()))
        return weights - LR * 0.25 * weights * mask

    measured = run(
        noise.adam(column(LR), column(0.9), beta2=0.999, decayed=decayed), [at] * 8, num_weights=256, steps=12_000
    )
    agree(measured, [at] * 8)
    count = sum(counts[2_000:]) / len(counts[2_000:])
    assert count == pytest.approx(0.455, abs=0.003)
    assert LR * 256 / (2 * 0.25 * at.norm**2) == pytest.approx(0.375, abs=0.001)
    counted = cautious_adamw(LR, 0.25, 256, share=count)
    assert counted.norm / float(measured.norm.mean()) == pytest.approx(0.90, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("r", "off"), [(0.01, 0.97), (0.03, 0.92)])
def test_how_far_off_the_rotation_of_strong_cautious_decay_is(r: float, off: float) -> None:
    at = cautious_adamw(LR, r / LR, DIM)
    optimizer = noise.adam(column(LR), column(0.9), decayed=lambda w, u, v, t: w - r * w * (u * w >= 0))
    measured = run(optimizer, [at] * 4, steps=4_000)
    assert measured.norm.mean().item() / at.norm == pytest.approx(1.0, abs=0.01)
    assert measured.rotation.mean().item() / at.rotation == pytest.approx(off, abs=0.01)


@needs_muon
def test_updates_of_newton_and_schulz_are_smaller() -> None:
    """0.87 to 0.90 of an orthogonal matrix's norm, for a Gaussian one: torch's Muon itself, at its first step."""
    for rows, columns, size in ((64, 64, 0.88), (64, 128, 0.87), (128, 128, 0.89)):
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.zeros(rows, columns))
        weight.grad = torch.randn(rows, columns, generator=generator)
        optimizer: torch.optim.Optimizer = torch.optim.Muon([weight], lr=1.0, weight_decay=0.0)
        optimizer.step()
        at = muon(1e-3, 0.1, rows, columns)
        assert float(weight.detach().norm()) / (at.gradient_to_weight * at.norm) == pytest.approx(size, abs=0.015)


# ---- the way there


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_relaxation(factor: float) -> None:
    """Norms along the way, and the number of steps until they are near."""
    for at, optimizer in (
        (sgd(0.1, 0.02, 1.0, momentum=0.5), noise.sgd(column(0.1), column(0.5), lam=0.02)),
        (lion(0.01, 0.4, DIM, beta1=0.0), noise.lion(column(0.01), column(0.4), column(0.0), column(0.0))),
    ):
        steps = math.ceil(relaxation_steps(at, factor * at.norm))
        start = torch.full((8, 1), factor * at.norm, dtype=torch.float64)
        norms = walk(optimizer, torch.ones(8, 1), start, DIM, steps=steps + 1, skip=0).norms.mean(1)
        assert float(norms[-1]) / at.norm == pytest.approx(1 + math.copysign(0.1, factor - 1), rel=TOLERANCE)
        for t in range(steps // 4, steps, steps // 4):
            assert float(norms[t]) == pytest.approx(at.norm_after(t, factor * at.norm), rel=2 * TOLERANCE)


@given(start=st.floats(0.1, 10.0), within=st.floats(0.01, 0.9), power=st.sampled_from([2, 3, 4]))
def test_relaxation_steps_are_where_the_norm_is_near(start: float, within: float, power: int) -> None:
    at = Equilibrium(2.0, 0.1, 0.1, 50.0, power)
    steps = relaxation_steps(at, start, within)
    if abs(start / 2.0 - 1) <= within:
        assert steps == 0.0
    else:
        assert at.norm_after(steps, start) == pytest.approx(2.0 * (1 + math.copysign(within, start - 2.0)), rel=1e-9)


def test_a_schedule_that_is_slow_against_the_time_scale_is_followed() -> None:
    """Defazio: with a falling lr the norm falls and the gradients grow over it; with lam in proportion to lr neither moves."""
    steps, lr, lam, window = 2_600, 0.08, 1.0, 100
    shape = cosine(1.0, 0.2, steps)
    places = range(600, steps - window, 300)
    for corrected in (False, True):
        lams = [lam * (shape(t) if corrected else 1.0) for t in range(steps)]

        def decayed(weights: Tensor, update: Tensor, v: Tensor, t: int, lams: list[float] = lams) -> Tensor:
            return (1 - lr * shape(t) * lams[t]) * weights

        optimizer = noise.adam(lambda t: lr * shape(t), column(0.0), beta2=0.98, decayed=decayed)
        laws = [adamw(lr * shape(t), each, DIM, beta1=0.0) for t, each in enumerate(lams)]
        start = torch.full((6, 1), laws[0].norm, dtype=torch.float64)
        norms = walk(optimizer, torch.ones(6, 1), start, DIM, steps=steps, skip=0).norms.mean(1)
        for t in places:
            expected = sum(law.norm for law in laws[t : t + window]) / window
            assert float(norms[t : t + window].mean()) == pytest.approx(expected, rel=TOLERANCE), (corrected, t)
        rise = laws[places[-1]].gradient_to_weight / laws[places[0]].gradient_to_weight
        assert rise == pytest.approx(1.0 if corrected else math.sqrt(shape(places[0]) / shape(places[-1])), rel=0.03)
        assert corrected or rise > 1.8


# ---- errors

WRONG: list[tuple[Any, str]] = [
    (lambda: sgd(0.1, 0.0, 1.0), r"lam must be > 0, got 0.0: without decay and steps there is no equilibrium"),
    (lambda: adamw(0.0, 0.1, 1), r"lr must be > 0, got 0.0: without decay and steps"),
    (lambda: adamw(0.1, 0.1, 0), r"num_weights must be > 0, got 0.0"),
    (lambda: adamw(2.0, 0.5, 1), r"lam \* lr = 0.5 \* 2.0 = 1.0 is not below 1"),
    (lambda: adamw(0.1, 0.1, 1, beta1=1.0), r"beta1 must satisfy 0 <= beta1 < 1, got 1.0"),
    (lambda: adams(0.1, 0.1, 1, 0.0), r"second_moment must be > 0, got 0.0"),
    (lambda: adam_l2(0.1, 1e6, 100, 1.0), r"lr = 0.1 and lam = 1e\+06 remove .* in equilibrium, expected less than 1"),
    (lambda: adam_l2(0.1, 0.1, 100, math.inf), r"gradient_norm must be a finite number > 0, got inf"),
    (lambda: sgds(0.1, 0.1, 1.0, momentum=1.0), r"momentum must satisfy 0 <= momentum < 1, got 1.0"),
    (lambda: sgd(0.1, 0.1, 1.0, momentum=0.5, dampening=1.0), r"dampening must satisfy 0 <= dampening < 1"),
    (lambda: cautious_adamw(0.1, 0.1, 1, share=0.0), r"share must be > 0, got 0.0"),
    (lambda: lion(0.1, 0.1, 1, beta2=-0.1), r"beta2 must satisfy 0 <= beta2 < 1, got -0.1"),
    (lambda: muon(0.1, 0.1, 4, 0), r"columns must be > 0, got 0.0"),
    (lambda: muon(0.1, 0.1, 4, 4, scaling="spectral"), r"scaling is 'spectral', expected \"original\" or"),
    (lambda: relaxation_steps(adamw(0.1, 0.1, 1), 0.0), r"start must be > 0, got 0.0"),
    (lambda: relaxation_steps(adamw(0.1, 0.1, 1), 1.0, within=0.0), r"within must be > 0, got 0.0"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_errors_say_what_was_expected(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
