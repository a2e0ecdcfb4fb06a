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

import functools
from dataclasses import dataclass
from typing import Any

from halflife.studies.catalog.theory.stationary_mean import figures
from halflife.studies.catalog.theory.stationary_mean import quantities as rules
from halflife.studies.evidence.claims import Arm, Preset, Study
from halflife.studies.evidence.decisions import WordedClaim
from halflife.studies.evidence.panels import PointsPanel
from halflife.studies.specs.stationary import StationaryRun

__all__ = ["PRESETS", "STATIONARY_MEAN"]

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


def _spec(fields: dict[str, Any], seed: int) -> StationaryRun:
    return StationaryRun(seed=seed, **fields)


def _closed(size: int, scale: Scale) -> list[Arm]:
    """Functions of one or two parameters, and diagonal networks on sparse regression."""
    kinds: list[tuple[str, str, dict[str, Any]]] = []
    for lr in (0.2, 0.1, 0.05):
        # u^2 - v^2 dies as exp(-(lr sigma)^2 steps): eight such times. The rest is averaging.
        burn_in = round(8 / (lr * 0.5) ** 2)
        line = {"model": "product", "lr": lr, "label_noise": 0.5, "regularizers": ("jacobian",)}
        line |= {"burn_in": burn_in, "num_steps": burn_in + round(500 / lr)}
        kinds.append((f"line-{lr:g}", f"h = u v, lr {lr:g}", line))
    square = {"model": "square", "lr": 0.05, "label_noise": 0.5, "burn_in": 1000, "num_steps": 7000}
    kinds.append(("square", "h = u^2, lr 0.05", square))
    kinds = [(key, label, {**fields, "num_replicas": scale.line_replicas}) for key, label, fields in kinds]
    sparse = {
        "data": "sparse", "num_examples": 12, "num_held_out": 12, "num_inputs": 20, "num_relevant": 3, "init": 0.5,
        "label_noise": 1.0, "burn_in": 17_000, "num_steps": 45_000, "measure_every": 5, "num_replicas": scale.replicas,
    }  # fmt: skip
    product = {**sparse, "model": "product", "regularizers": ("jacobian",)}
    kinds += [
        ("sparse", "u v, B = 1", {**product, "lr": 0.03, "lam": 0.03}),
        ("sparse-batch", "u v, B = 4", {**product, "lr": 0.06, "lam": 0.03, "batch_size": 4}),
        ("sparse-square", "u^2, B = 1", {**sparse, "model": "square", "lr": 0.01, "lam": 0.06}),
    ]
    return [_arm(key, label, size, fields, scale) for key, label, fields in kinds]


def _nets(size: int, scale: Scale) -> list[Arm]:
    """Two-layer nets on images of two classes."""
    net = {
        "model": "tanh", "hidden": size, "data": "fashion-mnist-5k", "num_examples": 32, "num_held_out": 32,
        "lam": 0.02, "burn_in": 6_000, "num_steps": 24_000, "measure_every": 5, "num_replicas": scale.replicas,
        "searched": (0.25, 1.0), "num_starts": 2, **dict(scale.net),
    }  # fmt: skip
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        (
            "net-squared",
            "squared loss, label noise",
            {"loss": "squared", "lr": 0.1, "label_noise": 0.5, "batch_size": 2},
        ),
        (
            "net-flips",
            "logistic loss, flipped labels",
            {"loss": "logistic", "lr": 0.2, "label_noise": 0.2, "batch_size": 2},
        ),
        ("net-logistic", "logistic loss, no label noise", {"loss": "logistic", "lr": 0.2}),
    ]
    return [_arm(key, label, size, {**net, **fields}, scale) for key, label, fields in kinds]


def _arm(key: str, label: str, size: int, fields: dict[str, Any], scale: Scale) -> Arm:
    steps = {name: max(round(fields[name] * scale.steps), 20) for name in ("burn_in", "num_steps")}
    steps["num_steps"] = max(steps["num_steps"], steps["burn_in"] + 20)
    spec = _spec({**fields, **steps, "prefactors": scale.prefactors}, 0)
    return Arm(key=key, label=label, size=size, spec=spec)


def _preset(
    description: str, budget: str, scale: Scale, *, main: int, others: tuple[int, ...] = (), **rest: Any
) -> Preset:
    nets = [arm for size in (main, *others) for arm in _nets(size, scale)]
    return Preset(
        description=description, budget=budget, arms=(*_closed(main, scale), *nets), main_size=main, **rest
    )  # fmt: skip


PRESETS = {
    "smoke": _preset(
        "a hundredth of the steps: shows that everything works, not what is true",
        "20 seconds",
        Scale(
            steps=0.01,
            line_replicas=20,
            replicas=4,
            prefactors=(0.0, 0.25, 1.0),
            net=(("num_examples", 8), ("num_held_out", 8), ("searched", ()), ("downsample", 14)),
        ),
        main=2,
        num_seeds=2,
        decides=False,
    ),
    "laptop": _preset(
        "functions of one or two parameters, diagonal networks with 20 inputs, tanh nets with 6 hidden units on 32 images",
        "10 minutes on 2 cores",
        Scale(),
        main=6,
        num_seeds=5,
    ),
    "night": _preset(
        "as laptop, four times as long, more seeds, and nets of 3, 6 and 12 hidden units",
        "90 minutes on 2 cores",
        Scale(steps=4.0),
        main=6,
        others=(3, 12),
        num_seeds=8,
        num_ladder_seeds=5,
    ),
    "paper": _preset(
        "nets with 64 hidden units on 256 images at 14 x 14 (the paper runs nothing of the kind: it states the conjecture)",
        "days on one GPU",
        Scale(
            steps=10.0,
            replicas=256,
            net=(("num_examples", 256), ("num_held_out", 256), ("downsample", 2)),
        ),
        main=64,
        num_seeds=5,
        needs="a GPU",
    ),
}


REST = (
    f" Inconclusive, too, where the mean moves by more than {rules.MOVED:g} of the distance without a regularizer between the"
    " halves of the time, or where a fitted c is at an edge of its grid."
)


def _claims(
    group: str, models: str, keys: tuple[str, ...], theory_keys: tuple[str, ...], factor: float, spread: tuple[str, ...]
) -> tuple[WordedClaim, ...]:
    """The claims about a group of models; ``group`` ends their keys."""
    return (
        WordedClaim(
            key=f"form{group}",
            text=f"{models}: with a fitted prefactor the objective says where the mean in function space is, and the objective"
            " without a regularizer does not.",
            rule="With c from the other seeds (geometric mean), distance of the mean from the minimum over that without a"
            f" regularizer: reproduced if its 95 % interval lies below {rules.EXPLAINS:g} in each of {', '.join(spread)}; not"
            " reproduced if it lies above in one; else inconclusive. Functions of one or two parameters are left out: they fit"
            f" anything.{REST}",
            effect_name="distance over that without a regularizer, where the objective predicts least",
            unit="x",
            measure=functools.partial(rules.form_explains, keys=spread),
        ),
        WordedClaim(
            key=f"prefactor{group}",
            text=f"{models}: the prefactor is lr / B times the variance of the noise, c = {rules.CONJECTURED:g}.",
            rule="Reproduced if the 90 % interval of the fitted c lies within a factor of"
            f" {rules.CONJECTURED_FACTOR:g} of {rules.CONJECTURED:g} in each of {', '.join(keys)}; not reproduced if it lies"
            f" wholly outside in one; else inconclusive.{REST}",
            effect_name="fitted c over 1, where it is farthest from it",
            unit="x",
            measure=functools.partial(
                rules.prefactor_is, keys=keys, value=rules.CONJECTURED, factor=rules.CONJECTURED_FACTOR
            ),
        ),
        WordedClaim(
            key=f"as-written{group}",
            text=f"{models}: the objective as it is written, c = {rules.CONJECTURED:g}, predicts the mean better than no"
            " regularizer.",
            rule="Reproduced if the 95 % interval of distance with c = 1 over that without a regularizer lies below 1 in each"
            f" of {', '.join(keys)}; not reproduced if it lies above in one; else inconclusive.{REST}",
            effect_name="distance with c = 1 over that without a regularizer, where it predicts least",
            unit="x",
            measure=functools.partial(rules.as_written, keys=keys),
        ),
        WordedClaim(
            key=f"quarter{group}",
            text=f"{models}, with label noise: the prefactor is a quarter of that, c = {rules.THEORY:g}, as the theory of SGD"
            " with label noise says for small learning rates.",
            rule=f"As prefactor{group}, within a factor of {factor:g} of {rules.THEORY:g}, in each of"
            f" {', '.join(theory_keys)}.{REST}",
            effect_name="fitted c over 1/4, where it is farthest from it",
            unit="x",
            measure=functools.partial(rules.prefactor_is, keys=theory_keys, value=rules.THEORY, factor=factor),
        ),
    )


def _regularizer(group: str, models: str, keys: tuple[str, ...]) -> WordedClaim:
    return WordedClaim(
        key=f"regularizer{group}",
        text=f"{models}: the regularizer is the norm of the Jacobian (the paper's second version) rather than the trace of the"
        " Hessian (its first).",
        rule="With c fitted for each: reproduced if the 95 % interval of distance with the trace over distance with ||J||^2"
        f" lies above 1 in each of {', '.join(keys)}; not reproduced if it lies below in one; else inconclusive.{REST}",
        effect_name="distance with the trace over that with the Jacobian, where they are most alike",
        unit="x",
        measure=functools.partial(rules.jacobian_fits_better, keys=keys),
    )


def _weights(group: str, models: str, keys: tuple[str, ...]) -> WordedClaim:
    return WordedClaim(
        key=f"weights{group}",
        text=f"{models}: the mean of the weights, as a moving average takes it, stands for the mean in function space.",
        rule="Distance between the outputs of the mean weights and the mean outputs, over the distance without a regularizer:"
        f" reproduced if its 95 % interval lies below {rules.STANDS:g} in each of {', '.join(keys)}; not reproduced if it lies"
        f" above in one; else inconclusive.{REST}",
        effect_name="distance of the two means over the effect, where they are least alike",
        unit="x",
        measure=functools.partial(rules.weights_stand_for_outputs, keys=keys),
    )


CLOSED_WORDS, NETS_WORDS = "Models with closed forms", "Small nets on images"

CLAIMS = (
    *_claims("", CLOSED_WORDS, rules.CLOSED, rules.CLOSED, rules.THEORY_FACTOR, rules.SPARSE),
    WordedClaim(
        key="batch",
        text="The prefactor is proportional to 1 / B.",
        rule="Reproduced if the 90 % interval of B times the fitted prefactor at B = 4 over that at B = 1 lies within a factor"
        f" of {rules.BATCH_FACTOR:g} of 1; not reproduced if it lies wholly outside; else inconclusive.{REST}",
        effect_name="B times the prefactor, B = 4 over B = 1",
        unit="x",
        measure=rules.same_at_both_batches,
    ),
    _regularizer("", CLOSED_WORDS, rules.DIFFER),
    _weights("", CLOSED_WORDS, rules.SPARSE),
    *_claims("-net", NETS_WORDS, rules.NETS, rules.NOISY_NETS, rules.THEORY_FACTOR_NETS, rules.NETS),
    _regularizer("-net", NETS_WORDS, rules.NETS),
    _weights("-net", NETS_WORDS, rules.NETS),
)

PROFILE_NOTE = (
    "Root mean square distance over training inputs of the mean of SGD in function space from the minimum of the objective with"
    " (c / B) lr sigma^2 ||J||^2, over the same without a regularizer (1: no better). Geometric means and 95 % intervals over"
    " seeds."
)

PANELS = (
    PointsPanel(
        slug="profile",
        title="Diagonal networks: how well each prefactor predicts the mean",
        x_label="c",
        y_label="distance over that without a regularizer",
        rows=figures.profile,
        log_x=True,
        log_y=True,
        note=PROFILE_NOTE,
    ),
    PointsPanel(
        slug="profile-nets",
        title="Small nets: how well each prefactor predicts the mean",
        x_label="c",
        y_label="distance over that without a regularizer",
        rows=figures.profile_of_nets,
        log_x=True,
        log_y=True,
        note=PROFILE_NOTE,
    ),
    PointsPanel(
        slug="profile-trace",
        title="The same with the trace of the Hessian in place of the Jacobian",
        x_label="c",
        y_label="distance over that without a regularizer",
        rows=figures.profile_of_trace,
        log_x=True,
        log_y=True,
        note=PROFILE_NOTE.replace("||J||^2", "Tr H"),
    ),
    PointsPanel(
        slug="prefactors",
        title="The prefactor that fits, for the norm of the Jacobian",
        x_label="learning rate",
        y_label="c",
        rows=figures.fitted_prefactors,
        log_x=True,
        log_y=True,
        note="Points: geometric means and 95 % intervals over seeds. Lines: the conjecture, and the theory of label noise.",
    ),
    PointsPanel(
        slug="shift",
        title="A net of the first seed: the shift of each output, predicted and measured",
        x_label="mean of SGD minus minimum without a regularizer",
        y_label="minimum with the regularizer minus that without",
        rows=figures.predicted_shift,
        note="One point a training image and prefactor (squared loss, label noise). On the line the prediction is exact.",
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
    presets=PRESETS,
    size_name="hidden units of the nets",
    doc_panels=("profile", "prefactors"),
)
