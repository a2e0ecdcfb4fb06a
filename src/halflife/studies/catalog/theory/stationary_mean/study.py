"""Where SGD settles: its mean in function space beside the minimum of the objective that the paper conjectures.

Conjecture 1: SGD with decay has a stationary law in function space whose mean is h(w*), w* a first-order stationary point of
L + lam / 2 ||w||^2 + lr sigma^2 ||J||^2 (the paper's first version: lr sigma^2 Tr H), for a batch of one; of B, lr / B. Nobody
seems to have measured the prefactor. Here it is c / B, and c is fitted.

What to expect. Near a minimum w_bar, with the squared loss and label noise of variance sigma^2, the iterates have the
covariance S = (lr sigma^2 / 2B) P, P the projection on the range of the Jacobians. Stationarity says E (h_i - y_i) dh_i = 0,
mean over i, that is, with the mean outputs m_i,

    mean_i (m_i - y_i) dh_i + mean_i Cov(h_i, dh_i) = 0,    Cov(h_i, dh_i) = d2h_i S dh_i = (lr sigma^2 / 4B) d ||dh_i||^2

so that to first order in lr the mean *in function space* is stationary for c = 1/4 and ||J||^2: the constant of Damian, Ma and
Lee (2021, arXiv 2106.06530), a quarter of the conjecture's. The outputs of the mean *weights* differ from m_i by half the
trace of d2h_i S, which is as large as the effect itself. On one parameter, h = u^2, this reads E h = y - lr sigma^2 and
(E u)^2 = y - 3/2 lr sigma^2. ||J||^2 and Tr H are the same wherever h is linear in each parameter and the loss is squared (all
linear networks; ReLU networks almost everywhere). And lr sigma^2 Tr H has the unit of a loss only if outputs have the unit
of the square root of one.

Explored on seeds 1000 to 1005: with lam = 0 (diagonal networks) or a decay below 0.02 (nets) means still moved after 20,000
steps by as much as the effect, so decay is larger here, and a rule asks whether the mean has come to rest. Those runs gave c
between 0.24 and 0.31 for models with label noise and the squared loss, about 0.2 with flipped labels, and 0.15 to 0.17 with the
logistic loss and no label noise. c = 1 was never near.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from halflife.studies.catalog.theory.stationary_mean.figures import PANELS, PUBLISHED
from halflife.studies.catalog.theory.stationary_mean.quantities import (
    CLOSED,
    CONJECTURED,
    DIFFER,
    LABELS,
    NETS,
    NOISY_NETS,
    SPARSE,
    as_written,
    batch_ratio,
    each,
    fitted_c,
    inside_grid,
    predicted,
    premises,
    trace_over_jacobian,
    weights_apart,
)
from halflife.studies.catalog.theory.stationary_mean.theory import THEORY
from halflife.studies.evidence.claims import Arm, Claim, Preset, Rule, Study, presets
from halflife.studies.evidence.quantities import Each, Quantity
from halflife.studies.evidence.rules import Premise
from halflife.studies.evidence.tests import Test, above, below, within_factor
from halflife.studies.specs.stationary import StationaryRun

__all__ = ["STATIONARY_MEAN"]

EXPLAINS = 0.5  # of the distance without a regularizer
CONJECTURED_FACTOR, THEORY_FACTOR, THEORY_FACTOR_NETS = 1.5, 1.2, 1.5
BATCH_FACTOR = 1.25
STANDS = 0.5

PREFACTORS = (0.0, *(round(2.0 ** (power / 2), 4) for power in range(-8, 5)))


@dataclass(frozen=True)
class Scale:
    """How long and how often things run.

    Args:
        steps: Factor on the numbers of steps.
        line_replicas: Replicas of functions of one or two parameters.
        replicas: Of all others.
        prefactors: The values of c.
        net: Further fields of the nets.
    """

    steps: float = 1.0
    line_replicas: int = 1000
    replicas: int = 32
    prefactors: tuple[float, ...] = PREFACTORS
    net: tuple[tuple[str, Any], ...] = ()


def _closed(size: int, scale: Scale) -> list[Arm]:
    """Functions of one or two parameters, and diagonal networks on sparse regression."""
    kinds: dict[str, dict[str, Any]] = {}
    for lr in (0.2, 0.1, 0.05):
        # u^2 - v^2 dies as exp(-(lr sigma)^2 steps): eight such times. The rest is averaging.
        burn_in = round(8 / (lr * 0.5) ** 2)
        steps = {"burn_in": burn_in, "num_steps": burn_in + round(500 / lr)}
        kinds[f"line-{lr:g}"] = {"model": "product", "lr": lr, "regularizers": ("jacobian",), **steps}
    kinds["square"] = {"model": "square", "lr": 0.05, "burn_in": 1000, "num_steps": 7000}
    kinds = {key: {**own, "label_noise": 0.5, "num_replicas": scale.line_replicas} for key, own in kinds.items()}
    sparse = {
        "data": "sparse", "num_examples": 12, "num_held_out": 12, "num_inputs": 20, "num_relevant": 3, "init": 0.5,
        "label_noise": 1.0, "burn_in": 17_000, "num_steps": 45_000, "measure_every": 5, "num_replicas": scale.replicas,
    }  # fmt: skip
    product = {**sparse, "model": "product", "regularizers": ("jacobian",)}
    kinds |= {
        "sparse": {**product, "lr": 0.03, "lam": 0.03},
        "sparse-batch": {**product, "lr": 0.06, "lam": 0.03, "batch_size": 4},
        "sparse-square": {**sparse, "model": "square", "lr": 0.01, "lam": 0.06},
    }
    return [_arm(key, size, own, scale) for key, own in kinds.items()]


def _nets(size: int, scale: Scale) -> list[Arm]:
    """Two-layer nets on images of two classes."""
    net = {
        "model": "tanh", "hidden": size, "data": "fashion-mnist-5k", "num_examples": 32, "num_held_out": 32,
        "lam": 0.02, "burn_in": 6_000, "num_steps": 24_000, "measure_every": 5, "num_replicas": scale.replicas,
        "searched": (0.25, 1.0), "num_starts": 2, **dict(scale.net),
    }  # fmt: skip
    kinds: dict[str, dict[str, Any]] = {
        "net-squared": {"loss": "squared", "lr": 0.1, "label_noise": 0.5, "batch_size": 2},
        "net-flips": {"loss": "logistic", "lr": 0.2, "label_noise": 0.2, "batch_size": 2},
        "net-logistic": {"loss": "logistic", "lr": 0.2},
    }
    return [_arm(key, size, {**net, **own}, scale) for key, own in kinds.items()]


def _arm(key: str, size: int, fields: dict[str, Any], scale: Scale) -> Arm:
    steps = {name: max(round(fields[name] * scale.steps), 20) for name in ("burn_in", "num_steps")}
    steps["num_steps"] = max(steps["num_steps"], steps["burn_in"] + 20)
    spec = StationaryRun(**{**fields, **steps, "prefactors": scale.prefactors})
    return Arm(key=key, label=LABELS[key], size=size, spec=spec)


def _preset(
    description: str, budget: str, scale: Scale, *, main: int, others: tuple[int, ...] = (), **rest: Any
) -> Preset:
    nets = [arm for size in (main, *others) for arm in _nets(size, scale)]
    return Preset(
        description=description, budget=budget, arms=(*_closed(main, scale), *nets), main_size=main, **rest
    )  # fmt: skip


PRESETS = presets(
    smoke=_preset(
        "a hundredth of the steps",
        "20 seconds",
        Scale(
            steps=0.01,
            line_replicas=20,
            replicas=4,
            prefactors=(0.0, 0.25, 1.0),
            net=(("num_examples", 8), ("num_held_out", 8), ("searched", ()), ("downsample", 14)),
        ),
        main=2,
    ),
    laptop=_preset(
        "functions of one or two parameters, diagonal networks with 20 inputs, tanh nets with 6 hidden units on 32 images",
        "10 minutes on 2 cores",
        Scale(),
        main=6,
    ),
    night=_preset(
        "as laptop, four times as long, more seeds, and nets of 3, 6 and 12 hidden units",
        "90 minutes on 2 cores",
        Scale(steps=4.0),
        main=6,
        others=(3, 12),
        num_seeds=8,
        num_ladder_seeds=5,
    ),
    paper=_preset(
        "nets with 64 hidden units on 256 images at 14 x 14 (the paper runs nothing of the kind: it states the conjecture)",
        "days on one GPU",
        Scale(
            steps=10.0,
            replicas=256,
            net=(("num_examples", 256), ("num_held_out", 256), ("downsample", 2)),
        ),
        main=64,
        needs="a GPU",
    ),
)


def _claim(key: str, text: str, measured: Each | Quantity, test: Test, *given: Premise) -> Claim:
    return Claim(key=key, text=text, rule=Rule(parts=((measured, test),), given=given))


FITS = "c that fits the mean of SGD"
BATCHES = ("sparse", "sparse-batch")


def _claims(
    group: str,
    models: str,
    *,
    keys: tuple[str, ...],
    spread: tuple[str, ...],  # with more than two parameters: the others fit anything
    noisy: tuple[str, ...],  # with label noise
    factor: float,  # within which their fitted prefactor is to be a quarter
    differ: tuple[str, ...],  # those in which the two regularizers differ
) -> tuple[Claim, ...]:
    """The claims about a group of models, whose keys end with ``group``."""
    return (
        _claim(
            f"form{group}",
            f"{models}: with a fitted prefactor the objective says where the mean in function space is, and the objective"
            " without a regularizer does not.",
            each(
                "distance of the mean from the minimum with c from the other seeds (geometric mean), over that without a"
                " regularizer",
                spread,
                predicted,
            ),
            below(EXPLAINS),
            *premises(spread),
        ),
        _claim(
            f"prefactor{group}",
            f"{models}: the prefactor is lr / B times the variance of the noise, c = {CONJECTURED:g}.",
            each(FITS, keys, fitted_c, unit=""),
            within_factor(CONJECTURED_FACTOR, around=CONJECTURED),
            *premises(keys),
        ),
        _claim(
            f"as-written{group}",
            f"{models}: the objective as it is written, c = {CONJECTURED:g}, predicts the mean better than no regularizer.",
            each(
                f"distance of the mean from the minimum with c = {CONJECTURED:g} over that without a regularizer",
                keys,
                as_written,
            ),
            below(1),
            *premises(keys),
        ),
        _claim(
            f"quarter{group}",
            f"{models}, with label noise: the prefactor is a quarter of the conjectured one, c = {THEORY:g}, as the theory of"
            " SGD with label noise says for small learning rates.",
            each(FITS, noisy, fitted_c, unit=""),
            within_factor(factor, around=THEORY),
            *premises(noisy),
        ),
        _claim(
            f"regularizer{group}",
            f"{models}: the regularizer is the norm of the Jacobian (the paper's second version) rather than the trace of the"
            " Hessian (its first).",
            each(
                "distance of the mean from the minimum with the trace of the Hessian over that with ||J||^2, c fitted for each",
                differ,
                trace_over_jacobian,
            ),
            above(1),
            *premises(differ),
            inside_grid(differ, "hessian"),
        ),
        _claim(
            f"weights{group}",
            f"{models}: the mean of the weights, as a moving average takes it, stands for the mean in function space.",
            each(
                "distance of the mean weights' outputs from the mean outputs, over the distance of these from the minimum"
                " without a regularizer",
                spread,
                weights_apart,
            ),
            below(STANDS),
            *premises(spread),
        ),
    )


CLAIMS = (
    *_claims(
        "",
        "Models with closed forms",
        keys=CLOSED,
        spread=SPARSE,
        noisy=CLOSED,
        factor=THEORY_FACTOR,
        differ=DIFFER,
    ),
    _claim(
        "batch",
        "The prefactor of the regularizer is proportional to 1 / B.",
        Quantity(
            name="B times the prefactor that fits the mean of SGD, B = 4 over B = 1, diagonal networks u v",
            values=batch_ratio,
            unit="x",
            log=True,
        ),
        within_factor(BATCH_FACTOR),
        *premises(BATCHES),
    ),
    *_claims(
        "-net",
        "Small nets on images",
        keys=NETS,
        spread=NETS,
        noisy=NOISY_NETS,
        factor=THEORY_FACTOR_NETS,
        differ=NETS,
    ),
)

STATIONARY_MEAN = Study(
    name="stationary-mean",
    title="Where SGD settles: the conjectured objective and its prefactor",
    source="D'Angelo et al. 2024 (arXiv 2310.04415), conjecture 1 and equation 4; Damian, Ma and Lee 2021 (arXiv 2106.06530)",
    claim="With a large learning rate the mean of SGD in function space is that of a stationary point of the loss with decay"
    " plus lr sigma^2 ||J||^2: the noise regularizes the Jacobian.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    presets=PRESETS,
    size_name="hidden units of the nets",
    doc_panels=("profile", "prefactors"),
)
