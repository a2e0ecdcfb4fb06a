"""Where decay and updates balance: the norm of a weight, and the angle that a step turns it by.

Why these are closed forms: in the model of `Equilibrium` the weights are an autoregression of second order,

    w_{t+1} = p w_t - q w_{t-1} - s n_t,    E ||n_t||^2 = n^2,    n_t independent of the past,

for which E ||w||^2 = s^2 n^2 (1 + q) / ((1 - q) ((1 + q)^2 - p^2)) and cos(angle of a step) = p / (1 + q). With momentum
mu, a penalty (L2) has p = 1 + mu - lr lam and q = mu, decoupled decay p = a + mu and q = a mu, a = 1 - r.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from halflife.errors import UserError
from halflife.numbers import check_fraction, check_non_negative, check_positive, check_share
from halflife.units import fraction

__all__ = [
    "Equilibrium",
    "adam_l2",
    "adams",
    "adamw",
    "cautious_adamw",
    "lion",
    "muon",
    "relaxation_steps",
    "sgd",
    "sgds",
    "sgdw",
]

SCALINGS = ("original", "match_rms_adamw")
TERMS = 4_000  # of the series of asin: at a correlation of 0.999 what is left out is below 1e-5 of the sum
SLICES = 200  # of an integral


@dataclass(frozen=True)
class Equilibrium:
    """What the norm of a weight and its direction do once decay and updates balance.

    The model of all functions that return it: one weight tensor of which the loss sees the direction alone, as
    normalization makes it, so that the gradient is orthogonal to it and grows as the norm shrinks, ``||g|| = gradient_norm
    / ||w||``; gradients that are noise, independent from step to step; constant ``lr`` and ``lam``; a run that has
    forgotten its start (`relaxation_steps`). Every function is within 3 % of training on such noise, most within 1 %
    (``tests/theory/test_equilibrium.py``, which measures the numbers that stand under Validity).

    Attributes:
        norm: ``||w||``, root mean square over time, in the unit of the weights.
        rotation: The angle between the weights before and after a step, in radians, root mean square.
        gradient_to_weight: ``||g|| / ||w||`` of the gradient as the optimizer takes it: as it is with SGD, divided by
            ``sqrt(v)`` in Adam's family, its signs with Lion, the orthogonalized matrix times its scale with Muon; in the
            unit of 1 / lr. With Adam's family the raw gradient has ``gradient_norm / norm**2``.
        relaxation: Steps in which what ``norm**power`` is away from its equilibrium falls to 1 / e.
        power: 4 where updates shrink as the norm grows (SGD), 2 where they do not, 3 with `adam_l2`, near the equilibrium.
    """

    norm: float
    rotation: float
    gradient_to_weight: float
    relaxation: float
    power: int

    def norm_after(self, steps: float, start: float) -> float:
        """The norm on the way from a start.

            norm(t)^p = norm^p + (start^p - norm^p) exp(-t / relaxation),    p = power

        From far above it falls as ``exp(-r t)``, from far below it grows as ``t^(1/p)``. Valid where what the optimizer
        remembers, ``1 / (1 - beta)`` steps of momentum and of v, is short against ``relaxation``.

        Args:
            steps: t, >= 0.
            start: The norm at t = 0, > 0.

        Returns:
            The norm after ``steps`` steps.

        Raises:
            UserError: If a number is out of range.

        Examples:
            >>> at = adamw(lr=1e-3, lam=0.1, num_weights=10_000)
            >>> [round(at.norm_after(t, start=20.0), 2) for t in (0, 5_000, 20_000, 100_000)]
            [20.0, 13.37, 7.51, 7.07]
        """
        p, left = self.power, math.exp(-check_non_negative("steps", steps) / self.relaxation)
        ratio = check_positive("start", start, finite=True) / self.norm
        largest = max(ratio, 1.0)  # taken out, so that no power overflows
        mean = left * (ratio / largest) ** p + (1.0 - left) * largest**-p
        return float(self.norm * largest * mean ** (1.0 / p))


def relaxation_steps(equilibrium: Equilibrium, start: float, within: float = 0.1) -> float:
    """Steps until the norm is near its equilibrium: how long a run must be for the formulas here to say something of it.

        relaxation * ln(|start^p - norm^p| / |edge^p - norm^p|),    edge = (1 +- within) norm, on the side of the start

    A layer that starts at four times its equilibrium under AdamW needs 2.1 tau (tau = 1 / (lr lam)) to come within 10 %.
    Under SGD one that starts at a quarter of it needs 0.27 tau.

    Source: from the recursion of the squared norm, ``E ||w||^2 <- (1 - r)^2 E ||w||^2 + lr^2 E ||u||^2``.

    Validity: as `Equilibrium.norm_after`. In a net a small layer starts further above its equilibrium than a large one, and
    needs longer.

    Args:
        equilibrium: What one of the functions here returns.
        start: The norm at the start, > 0.
        within: How near, as a share of the equilibrium, in (0, 1).

    Returns:
        The steps; 0 if the start is as near.

    Raises:
        UserError: If a number is out of range.

    Examples:
        >>> at = adamw(lr=1e-3, lam=0.1, num_weights=10_000)  # tau is 10,000 steps
        >>> round(relaxation_steps(at, start=4 * at.norm), -2), relaxation_steps(at, start=1.05 * at.norm)
        (21300.0, 0.0)
    """
    ratio = check_positive("start", start, finite=True) / equilibrium.norm
    within = check_positive("within", check_share("within", within))
    if abs(ratio - 1.0) <= within:
        return 0.0
    p, edge = equilibrium.power, 1.0 + math.copysign(within, ratio - 1.0)
    apart = p * math.log(max(ratio, 1.0)) + math.log1p(
        -(min(ratio, 1.0 / ratio) ** p)
    )  # of |ratio^p - 1|, the logarithm
    return equilibrium.relaxation * max(apart - math.log(abs(edge**p - 1.0)), 0.0)


def sgd(
    lr: float,
    lam: float,
    gradient_norm: float,
    *,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> Equilibrium:
    """SGD with momentum and a penalty, as torch's SGD does it with ``weight_decay``.

        norm^4 = lr gradient_norm^2 / (2 lam (1 - mu)),    rotation = sqrt(2 lr lam / (1 + mu)),
        gradient_to_weight = sqrt(2 lam (1 - mu) / lr),    relaxation = (1 - mu) / (4 lr lam)

    to first order in ``lr * lam``; computed are the exact ``cos(rotation) = 1 - lr lam / (1 + mu)`` and ``norm^4 = lr
    gradient_norm^2 (1 + mu) / ((1 - mu) lam (2 (1 + mu) - lr lam))``. Dampening d multiplies ``lr`` by ``1 - d``.
    Nesterov's momentum leaves the norm and multiplies the rotation by ``sqrt((1 - mu^2)(1 + mu)^2 + mu^4)``, 1.16 at mu =
    0.9.

    Source: Kosson et al., "Rotational Equilibrium" (arXiv 2305.17212), after van Laarhoven 2017; the exact form is that of
    an autoregression of second order. ``gradient_to_weight`` along a schedule: Defazio 2025 (arXiv 2506.02285).

    Validity: the model of `Equilibrium`. In a net successive gradients are not quite independent, and layers that
    are not scale-invariant, such as the head, do not follow.

    Args:
        lr: The learning rate.
        lam: The coefficient of the penalty, torch's ``weight_decay``; unit: 1 / lr, and > 0.
        gradient_norm: Root mean square of ``||w|| * ||g||``, which scale invariance keeps constant: measure both at a step.
        momentum: mu, ``0 <= mu < 1``.
        dampening: d, ``0 <= d < 1``; without momentum torch ignores it, and so does this.
        nesterov: Whether the momentum is Nesterov's.

    Returns:
        The equilibrium.

    Raises:
        UserError: If a number is out of range, or there is no equilibrium, because the decay is 0 or removes all.

    Examples:
        >>> at = sgd(lr=0.1, lam=5e-4, gradient_norm=1.0, momentum=0.9)
        >>> round(at.norm, 3), round(at.rotation, 5), round(at.gradient_to_weight, 4), round(at.relaxation)
        (5.623, 0.00725, 0.0316, 500)
    """
    mu, lr = check_share("momentum", momentum), _damped(lr, momentum, dampening)
    r = _fraction(lam, lr)
    gain, rotation = _autoregression(r, mu)
    rotation *= math.sqrt((1.0 - mu**2) * (1.0 + mu) ** 2 + mu**4) if nesterov else 1.0
    return _scale_invariant(lr, gradient_norm, gain, rotation, (1.0 - mu) / (4.0 * r))


def sgdw(lr: float, lam: float, gradient_norm: float, *, momentum: float = 0.0) -> Equilibrium:
    """SGD with momentum and decoupled decay: ``w <- (1 - lr lam) w - lr b,  b <- mu b + g``.

        norm^4 = lr gradient_norm^2 / (2 lam (1 - mu)^2),    rotation = sqrt(2 lr lam (1 - mu) / (1 + mu)),
        gradient_to_weight = (1 - mu) sqrt(2 lam / lr),    relaxation = 1 / (4 lr lam)

    where ``lr * lam`` is small against ``1 - mu``; computed is the exact form, ``cos(rotation) = (a + mu) / (1 + a mu)``
    with ``a = 1 - lr lam``. The same ``lam`` is ``1 - mu`` times weaker than a penalty's (`sgd`).

    Source: as `sgd`; the optimizer: Loshchilov and Hutter 2019 (arXiv 1711.05101), whose decay is not multiplied by the
    base learning rate (`halflife.convert` translates).

    Validity: as `sgd`.

    Args:
        lr: The learning rate.
        lam: The coefficient; unit: 1 / lr, and > 0.
        gradient_norm: Root mean square of ``||w|| * ||g||``.
        momentum: mu, ``0 <= mu < 1``.

    Returns:
        The equilibrium.

    Raises:
        UserError: As `sgd`.

    Examples:
        >>> at = sgdw(lr=0.1, lam=5e-3, gradient_norm=1.0, momentum=0.9)
        >>> round(at.norm, 3), round(at.rotation, 5)
        (5.617, 0.00726)
    """
    mu, r = check_share("momentum", momentum), _fraction(lam, lr)
    gain, rotation = _autoregression(r * (1.0 - mu), (1.0 - r) * mu)
    return _scale_invariant(lr, gradient_norm, gain, rotation, 1.0 / (4.0 * r))


def sgds(lr: float, lam: float, gradient_norm: float, *, momentum: float = 0.0, dampening: float = 0.0) -> Equilibrium:
    """SGD with stable weight decay, `halflife.Stable`: ``r = lr lam (1 - d) / (1 - mu)`` from the first step on.

    The equilibrium is that of `sgd` to first order in ``lr * lam / (1 - mu)`` (at 0.02 the norm is 4 % apart): what SGDS
    changes is the lag of momentum.

    Source: Xie et al. 2023 (arXiv 2011.11152), SGDS; the equilibrium as `sgdw`.

    Validity: as `sgd`.

    Args:
        lr: The learning rate.
        lam: The coefficient; unit: 1 / lr, and > 0.
        gradient_norm: Root mean square of ``||w|| * ||g||``.
        momentum: mu, ``0 <= mu < 1``.
        dampening: d, ``0 <= d < 1``; without momentum torch ignores it, and so does this.

    Returns:
        The equilibrium.

    Raises:
        UserError: As `sgd`.

    Examples:
        >>> at = sgds(lr=0.1, lam=5e-4, gradient_norm=1.0, momentum=0.9)
        >>> round(at.norm, 3), round(at.rotation, 5)
        (5.617, 0.00726)
    """
    mu = check_share("momentum", momentum)
    return sgdw(_damped(lr, mu, dampening), _positive("lam", lam) / (1.0 - mu), gradient_norm, momentum=mu)


def adamw(lr: float, lam: float, num_weights: float, *, beta1: float = 0.9) -> Equilibrium:
    """AdamW as torch's does it, where ``r = lr lam``.

        norm = sqrt(lr d / (2 lam)),    rotation = sqrt(2 lr lam (1 - beta1) / (1 + beta1)),
        gradient_to_weight = sqrt(2 lam / lr),    relaxation = 1 / (2 lr lam)

    with d weights, where ``lr * lam`` is small against ``1 - beta1``; computed is the exact form, with ``a = 1 - lr lam``
    and the update's norm ``U = sqrt(d (1 - beta1) / (1 + beta1))``:

        norm = lr U sqrt((1 + a beta1) / ((1 - a^2) (1 - a beta1))),
        sin(rotation) = sqrt((1 - a^2) (1 - beta1^2)) / (1 + a beta1)

    Neither depends on the size of the gradients, so that AdamW turns all layers alike.

    Source: Kosson et al. (arXiv 2305.17212); the exact form: the hyperball paper (arXiv 2606.16899).

    Validity: the model of `Equilibrium`, ``eps`` far below ``sqrt(v)``, and ``beta2`` near 1: v is taken as the
    mean of squared gradients. At beta2 = 0.95 the norm is 1 % lower with beta1 = 0.9, and 2 % lower with beta1 = 0.

    Args:
        lr: The learning rate.
        lam: The coefficient, torch's ``weight_decay``; unit: 1 / lr, and > 0.
        num_weights: d, the number of weights of the tensor (with 1, ``norm`` is the root mean square of a weight).
        beta1: The momentum, ``0 <= beta1 < 1``.

    Returns:
        The equilibrium.

    Raises:
        UserError: As `sgd`.

    Examples:
        >>> at = adamw(lr=3e-4, lam=0.1, num_weights=1)
        >>> round(at.norm, 4), round(at.rotation, 5), round(at.gradient_to_weight, 1), round(at.relaxation)
        (0.0387, 0.00178, 25.8, 16667)
    """
    return _with_fixed_updates(_fraction(lam, lr), lr, _root(num_weights), beta1)


def adams(lr: float, lam: float, num_weights: float, second_moment: float, *, beta1: float = 0.9) -> Equilibrium:
    """Adam with stable weight decay, `halflife.Stable`: ``r = lr lam / sqrt(v)`` with one v for all layers.

        norm = sqrt(lr d sqrt(v) / (2 lam)),    rotation = sqrt(2 lr lam (1 - beta1) / ((1 + beta1) sqrt(v)))

    where r is small against ``1 - beta1``; the exact form is that of `adamw` at ``lam / sqrt(v)``. Like AdamW it turns all
    layers alike.

    In equilibrium v itself follows from the layers' gradients, with d weights in all and d_l in layer l:
    ``v^(3/2) = 2 lam sum_l (gradient_norm_l^2 / d_l) / (lr d)``.

    Source: Xie et al. 2023 (arXiv 2011.11152), AdamS; derived as `adamw`.

    Validity: as `adamw`, and `Stable`'s floor does not decide.

    Args:
        lr: The learning rate.
        lam: The coefficient; unit: gradient / lr, and > 0.
        num_weights: d, the number of weights of the tensor.
        second_moment: v, the mean over all weights of all layers of Adam's second moment, > 0.
        beta1: The momentum, ``0 <= beta1 < 1``.

    Returns:
        The equilibrium.

    Raises:
        UserError: As `sgd`.

    Examples:
        >>> at = adams(lr=3e-4, lam=1e-4, num_weights=1, second_moment=1e-6)  # as AdamW with 0.1
        >>> round(at.norm, 4), round(at.rotation, 5)
        (0.0387, 0.00178)
    """
    size = math.sqrt(check_positive("second_moment", second_moment, finite=True))
    return adamw(lr, _positive("lam", lam) / size, num_weights, beta1=beta1)


def adam_l2(lr: float, lam: float, num_weights: float, gradient_norm: float, *, beta1: float = 0.9) -> Equilibrium:
    """Adam with a penalty, as torch's Adam does it with ``weight_decay``: the penalty is divided by ``sqrt(v)``, too.

        norm = (lr d s / (2 lam))^(1/3),    rotation = sqrt((1 - beta1) / (1 + beta1)) (2 lr^2 lam sqrt(d) / s)^(1/3),
        s = gradient_norm / sqrt(d)

    so that a layer with ten times the gradients turns 2.2 times less a step: what AdamW balances, Adam with a penalty does
    not. ``relaxation`` is a third of the time scale of its decay, ``s / (lr lam norm)``.

    Source: Kosson et al. (arXiv 2305.17212), derived anew.

    Validity: as `adamw`, and the penalty is a small part of v. It is where decay is slow, because ``(lam norm^2 /
    gradient_norm)^2`` is half of the fraction that a step removes; at fractions of 0.05 the norm is right to 0.5 %, at 0.28
    to 2.5 %.

    Args:
        lr: The learning rate.
        lam: The coefficient of the penalty, torch's ``weight_decay``; unit: gradient / weight, and > 0.
        num_weights: d, the number of weights of the tensor.
        gradient_norm: Root mean square of ``||w|| * ||g||``, without the penalty.
        beta1: The momentum, ``0 <= beta1 < 1``.

    Returns:
        The equilibrium.

    Raises:
        UserError: If a number is out of range, or the decay removes all in a step.

    Examples:
        >>> small, large = (adam_l2(1e-3, 1e-4, 100, gradient_norm=size) for size in (1.0, 10.0))
        >>> round(small.norm, 3), round(large.norm / small.norm, 3), round(small.rotation / large.rotation, 3)
        (3.684, 2.154, 2.154)
    """
    lr, lam = _positive("lr", lr), _positive("lam", lam)
    beta1, root = check_share("beta1", beta1), _root(num_weights)
    gradient_norm = check_positive("gradient_norm", gradient_norm, finite=True)
    norm = (lr * root * gradient_norm / (2.0 * lam)) ** (1.0 / 3.0)
    r = lr * lam * norm * root / gradient_norm
    if not r < 1.0:
        raise UserError(
            f"lr = {lr:g} and lam = {lam:g} remove {r:.3g} of the weights at a step in equilibrium, expected less than 1:"
            " lower lam"
        )
    _, rotation = _autoregression(r * (1.0 - beta1), beta1)
    return Equilibrium(norm, rotation, root / norm, 1.0 / (3.0 * r), 3)


def cautious_adamw(
    lr: float, lam: float, num_weights: float, *, beta1: float = 0.9, share: float | None = None
) -> Equilibrium:
    """AdamW with cautious weight decay, `halflife.Cautious`: decay where update times weight is >= 0.

        norm = sqrt(lr d / (2 lam q)),    rotation^2 = x^2 + 2 r x / pi + r^2 / 4,
        x = lr U / norm,    U = sqrt(d (1 - beta1) / (1 + beta1))

    with q the share of the decay that counts, and the rotation that the mask makes by itself. q is below one half: momentum
    has made the weights from what it still subtracts, and what decays at a step would have been subtracted next. To first
    order in x,

        q = 1/2 - x (1 + 2 beta1) / (pi (1 - beta1))

    solved here for x and q together. The norm is larger than AdamW's at the same ``lam``, and the rotation smaller.

    Source: the rule: Chen et al. 2025, "Cautious Weight Decay"; norm, rotation and q: derived here.

    Validity: as `adamw`. With ``lr lam`` of 0.01 and 0.03 at beta1 = 0.9 (x is 0.19 and 0.28 times ``1 - beta1``) the norm
    is right to 1 %, and the rotation 3 % and 8 % too large. The share of the weights that decay, which a run can count, is
    larger than q: at lr lam = 0.005 and beta1 = 0.9 it is 0.455 and q 0.375, so that with the count as ``share`` the norm
    is 10 % too small.

    Args:
        lr: The learning rate.
        lam: The coefficient, torch's ``weight_decay``; unit: 1 / lr, and > 0.
        num_weights: d, the number of weights of the tensor.
        beta1: The momentum, ``0 <= beta1 < 1``.
        share: q, if it is known, in (0, 1).

    Returns:
        The equilibrium.

    Raises:
        UserError: As `sgd`.

    Examples:
        >>> at, plain = (law(lr=1e-3, lam=0.1, num_weights=100) for law in (cautious_adamw, adamw))
        >>> round(at.norm / plain.norm, 3), round(at.rotation / plain.rotation, 3)
        (1.444, 0.703)
    """
    r, beta1, root = _fraction(lam, lr), check_share("beta1", beta1), _root(num_weights)
    spread = (1.0 - beta1) / (1.0 + beta1)
    if share is None:
        slope = (1.0 + 2.0 * beta1) / (math.pi * (1.0 - beta1)) * math.sqrt(2.0 * r * spread)
        share = ((math.sqrt(slope**2 + 2.0) - slope) / 2.0) ** 2  # q = 1/2 - slope sqrt(q)
    share = check_positive("share", check_share("share", share))
    norm = lr * root / math.sqrt(2.0 * r * share)
    x = lr * root * math.sqrt(spread) / norm
    return Equilibrium(
        norm, math.sqrt(x**2 + 2.0 * r * x / math.pi + r**2 / 4.0), root / norm, 1.0 / (2.0 * r * share), 2
    )


def lion(lr: float, lam: float, num_weights: float, *, beta1: float = 0.9, beta2: float = 0.99) -> Equilibrium:
    """Lion: ``w <- (1 - lr lam) w - lr sign(c)``, ``c = beta1 m + (1 - beta1) g``, ``m <- beta2 m + (1 - beta2) g``.

    With Gaussian gradients the signs of two steps, k apart, have the correlation ``s_k = (2 / pi) asin(rho_k)``, where
    ``rho_k = rho_1 beta2^(k - 1)`` is that of c. With ``a = 1 - lr lam``:

        norm^2 = lr^2 d (1 + 2 sum_k a^k s_k) / (1 - a^2),    cos(rotation) = a + lr^2 d sum_k a^(k - 1) s_k / norm^2

    The published form takes asin(x) as x:

        rotation = sqrt(pi / 2) sqrt(2 lr lam) sqrt((1 - beta1)^2 + beta1^2 (1 - beta2) / (1 + beta2)),
        norm = lr sqrt(d) / rotation

    Source: Kosson et al. (arXiv 2305.17212) for the published form; the sum is derived here.

    Validity: the model of `Equilibrium`, with coordinates of c that are about Gaussian. The published norm is 0.3 % off at
    the defaults and lr lam = 1e-4, and 3 % at betas of 0.95 and 0.98; but it is 20 % too small without momentum (beta1 =
    0), and 21 % too large at the defaults and lr lam = 5e-3.

    Args:
        lr: The learning rate.
        lam: The coefficient; unit: 1 / lr, and > 0.
        num_weights: d, the number of weights of the tensor.
        beta1: The share of m in c, ``0 <= beta1 < 1``.
        beta2: The momentum, ``0 <= beta2 < 1``.

    Returns:
        The equilibrium.

    Raises:
        UserError: As `sgd`.

    Examples:
        >>> at = lion(lr=1e-4, lam=1.0, num_weights=100)
        >>> round(at.norm, 3), round(at.rotation, 5), round(at.relaxation)
        (0.477, 0.00209, 5000)
    """
    beta1, beta2 = check_share("beta1", beta1), check_share("beta2", beta2)
    return _with_correlated_updates(lam, lr, _root(num_weights), beta1, beta2, gaussian_signs=1.0)


def muon(
    lr: float,
    lam: float,
    rows: float,
    columns: float,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    scaling: str = "original",
) -> Equilibrium:
    """Muon on a matrix, with the scale of torch's ``adjust_lr_fn``: ``w <- (1 - lr lam) w - lr scale orthogonalized(c)``.

    The orthogonalized matrix is min(rows, columns) orthonormal directions, so that with the scale an update has the norm

        "original" (and the speedruns)    scale = max(1, sqrt(rows / columns))      U = sqrt(rows)
        "match_rms_adamw" (Moonlight)     scale = 0.2 sqrt(max(rows, columns))      U = 0.2 sqrt(rows columns)

    With mu = 0 the equilibrium is that of `adamw` with this U. Else updates of neighbouring steps are alike, and as in
    `lion`

        norm^2 = lr^2 U^2 (1 + 2 sum_k a^k s_k) / (1 - a^2),    s_k = (1 - q) rho_k + q (2 / pi) asin(rho_k)

    where q is 0 for a matrix that is much wider than high, and 0.77 for a square one: orthogonalizing a wide matrix only
    scales it, and orthogonalizing a number takes its sign. q follows from the mean singular value of a Gaussian matrix.

    Source: the hyperball paper (arXiv 2606.16899) has ``norm = lr U sqrt((1 + a mu) / ((1 - a^2)(1 - a mu)))``, q = 0
    without Nesterov; the rest is derived here.

    Validity: the model of `Equilibrium`, sides of 8 and more, and an exact orthogonalization. The published norm
    is 1 % too large for 8 x 64, 14 % for a square, and 25 % for a square with Nesterov (mu = 0.95). torch's five
    Newton-Schulz steps make updates 0.87 to 0.90 times as large: the norm is that much smaller, and the rotation as
    computed.

    Args:
        lr: The learning rate.
        lam: The coefficient, torch's ``weight_decay``; unit: 1 / lr, and > 0.
        rows: The first dimension of the matrix, its outputs.
        columns: The second, its inputs.
        momentum: mu, ``0 <= mu < 1``.
        nesterov: Whether the gradient is added once more to the momentum, as by default in torch.
        scaling: ``"original"`` or ``"match_rms_adamw"``.

    Returns:
        The equilibrium.

    Raises:
        UserError: If a number is out of range, or the scaling is another.

    Examples:
        >>> at = muon(lr=0.02, lam=0.1, rows=64, columns=256)
        >>> round(at.norm, 2), round(at.rotation, 4)
        (13.84, 0.0114)
    """
    if scaling not in SCALINGS:
        raise UserError(f'scaling is {scaling!r}, expected "original" or "match_rms_adamw": name one of them')
    high, wide, mu = _root(rows, "rows"), _root(columns, "columns"), check_share("momentum", momentum)
    size = high if scaling == "original" else 0.2 * high * wide
    # The mean singular value of a Gaussian matrix over the root of their mean square (Marchenko and Pastur).
    side = min(high, wide) / max(high, wide)
    angles = [math.pi * (i + 0.5) / SLICES for i in range(SLICES)]
    mean = 2.0 / SLICES * sum(math.sin(x) ** 2 / math.sqrt(1.0 + side**2 + 2.0 * side * math.cos(x)) for x in angles)
    signs = (1.0 - mean**2) / (1.0 - 2.0 / math.pi)
    return _with_correlated_updates(lam, lr, size, mu**2 if nesterov else mu, mu, gaussian_signs=signs)


def _with_correlated_updates(
    lam: float, lr: float, size: float, beta1: float, beta2: float, *, gaussian_signs: float
) -> Equilibrium:
    """Decoupled decay, and updates of one size, made of c = beta1 m + (1 - beta1) g, m an average of noise with beta2.

    Args:
        lam: The coefficient.
        lr: The learning rate.
        size: The norm of an update.
        beta1: The share of m.
        beta2: Its momentum.
        gaussian_signs: How far correlations are those of signs, (2 / pi) asin(rho), and not those of c, rho.

    Returns:
        The equilibrium.
    """
    r = _fraction(lam, lr)
    fresh, old = 1.0 - beta1, beta1 * (1.0 - beta2)  # the weights of g_t and of g_{t-1} in c_t
    spread = old**2 / (1.0 - beta2**2)
    rho = (fresh * old + spread * beta2) / (fresh**2 + spread)
    # total = sum_k a^(k - 1) s_k. Each power of rho_k = rho beta2^(k - 1) in the series of asin has a geometric sum.
    a, factor, power, signs = 1.0 - r, 1.0, rho, 0.0
    for n in range(1, TERMS, 2):
        signs += factor / n * power / (1.0 - a * beta2**n)
        factor, power = factor * n / (n + 1), power * rho**2
    total = (1.0 - gaussian_signs) * rho / (1.0 - a * beta2) + gaussian_signs * 2.0 / math.pi * signs
    gain = (1.0 + 2.0 * a * total) / (r * (1.0 + a))
    norm = lr * size * math.sqrt(gain)
    missing = r - total / gain  # 1 - cos(rotation)
    return Equilibrium(norm, 2.0 * math.asin(math.sqrt(missing / 2.0)), size / norm, 1.0 / (2.0 * r), 2)


def _damped(lr: float, momentum: float, dampening: float) -> float:
    """The learning rate that SGD has in effect: torch ignores the dampening where there is no momentum."""
    kept = 1.0 - check_share("dampening", dampening)
    return _positive("lr", lr) * (kept if momentum else 1.0)


def _scale_invariant(lr: float, gradient_norm: float, gain: float, rotation: float, relaxation: float) -> Equilibrium:
    """Where the noise is ``gradient_norm / ||w||``, so that ``||w||^2 = lr^2 gradient_norm^2 / ||w||^2 * gain``."""
    norm = math.sqrt(check_positive("gradient_norm", gradient_norm, finite=True) * lr) * gain**0.25
    return Equilibrium(norm, rotation, 1.0 / (lr * math.sqrt(gain)), relaxation, 4)


def _with_fixed_updates(r: float, lr: float, noise: float, beta1: float) -> Equilibrium:
    """Decoupled decay, and updates that average noise of one size over the steps."""
    beta1 = check_share("beta1", beta1)
    gain, rotation = _autoregression(r * (1.0 - beta1), (1.0 - r) * beta1)
    norm = lr * (1.0 - beta1) * noise * math.sqrt(gain)
    return Equilibrium(norm, rotation, noise / norm, 1.0 / (2.0 * r), 2)


def _autoregression(missing: float, q: float) -> tuple[float, float]:
    """Of ``w_{t+1} = p w_t - q w_{t-1} - noise``: E ||w||^2 over the mean square of the noise, and the angle of a step.

    Args:
        missing: ``1 + q - p``, which is of the order of r: as a difference it would lose its digits.
        q: As above.

    Returns:
        Both.
    """
    gain = (1.0 + q) / ((1.0 - q) * missing * (2.0 * (1.0 + q) - missing))
    return gain, 2.0 * math.asin(math.sqrt(missing / (1.0 + q) / 2.0))


def _fraction(lam: float, lr: float) -> float:
    """``lr * lam``, which must be above 0 for an equilibrium."""
    return check_fraction(fraction(_positive("lam", lam), _positive("lr", lr)))


def _positive(name: str, value: float) -> float:
    try:
        return check_positive(name, value, finite=True)
    except UserError as error:
        raise UserError(f"{error}: without decay and steps there is no equilibrium") from error


def _root(count: float, name: str = "num_weights") -> float:
    return math.sqrt(check_positive(name, count, finite=True))
