"""Where decay and updates balance: the formulas of `halflife.theory`, on noise alone and layer by layer in small nets.

Source: Kosson, Messmer, Jaggi, "Rotational Equilibrium: How Weight Decay Balances Learning Across Neural Networks" (2023,
arXiv 2305.17212), and Defazio, "Why Gradients Rapidly Increase Near the End of Training" (2025, arXiv 2506.02285), for the
ratio of gradient and weight under a falling rate; Xie et al. (arXiv 2011.11152) for SGDS and AdamS.

The formulas are for weights that the loss sees the direction of, under gradients that are noise, at a constant rate, after the
run has forgotten its start. On noise alone the settings are such that this takes 500 steps, of 5,000. The settings in the nets
were looked for on seeds of 500 and above, and so were their ends: SGD at lr 0.05, lam 0.01 with norms 5 to 8 % low; AdamW there
with lam 3, and not yet with lam 1; Adam with L2 with norms 8 % low and rotations 10 % high. Under a cosine the formula for a
constant rate was 7 % off at 70 % of the run, 18 % at 80 % and 66 % at 95 %, because the balance takes time.

The margins, 3 % on noise and 10 % in nets, were chosen before any run of the presets' seeds. A prediction takes from the run
what its formula needs and no more: the mean square of norm times gradient, or the second moment of AdamS.

Changed after the presets' seeds were run once: layers on noise start at a norm of 15, where they started at 1, which is near
the end of SGD, so that for SGD, SGDW and SGDS nothing was at stake (they ended within 0.1 % of the formulas all the same). No
rule was changed. At 70 % of a cosine the formula's rise is 1.56, and what is at stake for Corrected asks for 1.5: it was set
for a later place, and stays.

Shapes: S seeds, T readings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from halflife import theory
from halflife.studies.catalog.images.common import CIFAR_10, CIFAR_10_NEEDS
from halflife.studies.evidence.claims import Arm, Claim, PointsPanel, Preset, Rule, Study, presets
from halflife.studies.evidence.quantities import Measure, Numbers, Quantity
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import along, by_name
from halflife.studies.evidence.tests import above, below, exceeds_factor, within_factor
from halflife.studies.specs.images import ImageRun
from halflife.studies.specs.noise_only import NoiseOnlyRun
from halflife.theory import Equilibrium

__all__ = ["EQUILIBRIUM"]

ON_NOISE = 1.03  # a factor
IN_NETS = 1.1
FAR = 1.5  # a factor that the start is away by, so that there is something to settle
BALANCED = 1.05
LATE = 0.5  # of a run on noise, from which on its readings count
LAST = 0.85  # of a net's run
BETA1 = 0.9
SIZES = (0.3, 3.0)  # gradient norms of the two layers on noise


@dataclass(frozen=True, kw_only=True)
class Law:
    """An optimizer with its decay, and what theory says of it.

    Args:
        key: Names its arms.
        words: In labels and texts.
        optimizer: Of the specs.
        decay: The rule with ``{lam:g}`` where its coefficient goes.
        noise: Learning rate and lam on noise alone.
        net: Those in a net (``None``: not run there).
        says: From lr, lam, number of weights, root mean square of norm times gradient, and root of the second moment.
    """

    key: str
    words: str
    optimizer: str
    decay: str
    noise: tuple[float, float]
    net: tuple[float, float] | None
    says: Callable[[float, float, float, float, float], Equilibrium]

    @property
    def momentum(self) -> float:
        """Of the specs."""
        return 0.9 if self.optimizer == "sgd" else 0.0


LAWS = {
    law.key: law
    for law in (
        Law(
            key="sgd",
            words="SGD with L2",
            optimizer="sgd",
            decay="L2(lam={lam:g})",
            noise=(0.1, 0.002),
            net=(0.05, 0.01),
            says=lambda lr, lam, d, gradient, v: theory.sgd(lr, lam, gradient, momentum=0.9),
        ),
        Law(
            key="sgdw",
            words="SGDW",
            optimizer="sgd",
            decay="Decoupled(lam={lam:g})",
            noise=(0.1, 0.02),
            net=(0.05, 0.1),
            says=lambda lr, lam, d, gradient, v: theory.sgdw(lr, lam, gradient, momentum=0.9),
        ),
        Law(
            key="sgds",
            words="SGDS",
            optimizer="sgd",
            decay="Stable(lam={lam:g})",
            noise=(0.1, 0.002),
            net=None,  # to the bit SGDW with lam / (1 - mu)
            says=lambda lr, lam, d, gradient, v: theory.sgds(lr, lam, gradient, momentum=0.9),
        ),
        Law(
            key="adamw",
            words="AdamW",
            optimizer="adam",
            decay="Decoupled(lam={lam:g})",
            noise=(0.01, 0.2),
            net=(0.003, 3.0),
            says=lambda lr, lam, d, gradient, v: theory.adamw(lr, lam, d, beta1=BETA1),
        ),
        Law(
            key="adam-l2",
            words="Adam with L2",
            optimizer="adam",
            decay="L2(lam={lam:g})",
            noise=(0.01, 0.003),
            net=(0.003, 0.03),
            says=lambda lr, lam, d, gradient, v: theory.adam_l2(lr, lam, d, gradient, beta1=BETA1),
        ),
        Law(
            key="adams",
            words="AdamS",
            optimizer="adam",
            decay="Stable(lam={lam:g})",
            noise=(0.01, 0.0027),
            net=(0.003, 0.03),
            says=lambda lr, lam, d, gradient, v: theory.adams(lr, lam, d, v**2, beta1=BETA1),
        ),
        Law(
            key="lion",
            words="Lion",
            optimizer="lion",
            decay="Decoupled(lam={lam:g})",
            noise=(0.001, 2.0),
            net=None,
            says=lambda lr, lam, d, gradient, v: theory.lion(lr, lam, d, beta1=BETA1, beta2=0.99),
        ),
        Law(
            key="cautious",
            words="cautious AdamW",
            optimizer="adam",
            decay="Cautious(Decoupled(lam={lam:g}))",
            noise=(0.01, 0.2),
            net=(0.003, 3.0),
            says=lambda lr, lam, d, gradient, v: theory.cautious_adamw(lr, lam, d, beta1=BETA1),
        ),
    )
}
NOISE_FIELDS: Mapping[str, Any] = {
    "num_weights": (1_000, 1_000),
    "gradient_norms": SIZES,
    "beta2": 0.99,
    "start_norm": 15.0,
    "num_steps": 5_000,
    "eval_every": 100,
}
FALLING = {"sgdw": ("SGDW", "Decoupled(lam=0.1)"), "corrected": ("SGD, Corrected", "Corrected(lam=0.1)")}
"""Words and decay under a rate that falls as a cosine to 0: SGD, whose gradient is not divided by anything."""
MIDDLE, NEAR_END, END = 0.5, 0.7, 0.95  # of a run under a falling rate
NET_FIELDS: Mapping[str, Any] = {
    "num_train": 5_000,
    "model": "resnet",
    "width": 8,
    "lr_schedule": "constant(value=1.0)",
    "decay_on": "matrices",
    "num_epochs": 20,
    "eval_every": 20,
    "ema": (),
    "trace": True,
}
CONVOLUTIONS = tuple(f"layers.{stage}.conv{place}.weight" for stage in range(3) for place in (1, 2))
HEAD, SHORTCUTS = "head.weight", ("layers.1.shortcut.weight", "layers.2.shortcut.weight")


def noise_key(law: str, *, falling: bool = False) -> str:
    """The key of an arm on noise alone."""
    return f"noise-{law}-falling" if falling else f"noise-{law}"


def net_key(law: str, model: str = "resnet") -> str:
    """The key of a net's arm."""
    return f"{model}-{law}"


def num_weights(tensor: str, width: int) -> int:
    """How many weights a tensor of the ResNet has."""
    stage = 0 if tensor == HEAD else int(tensor.split(".")[1])
    out, into = width << stage, width << max(stage - 1, 0)
    if tensor == HEAD:
        return 10 * width * 4
    if tensor in SHORTCUTS:
        return out * into
    return 9 * out * (into if ".conv1." in tensor else out)


@dataclass(frozen=True)
class Late(Measure):
    """The mean of a reading over the end of a run, (S,).

    Args:
        arm: The arm.
        name: The reading.
        after: Readings count from this share of the steps on.
        until: And up to this one.
        squared: Whether it is the root of the mean square.
    """

    arm: str
    name: str
    after: float
    until: float = 1.0
    squared: bool = False

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,)."""
        found = []
        for steps_T, values_T in results.series_by_step(self.arm, self.name, size):
            counted_T = values_T[(steps_T > self.after * steps_T[-1]) & (steps_T <= self.until * steps_T[-1])]
            found.append(float(np.sqrt(np.mean(counted_T)) if self.squared else np.mean(counted_T)))
        return np.array(found)


@dataclass(frozen=True)
class OverTheory(Measure):
    """Measured over predicted, the geometric mean over tensors, (S,).

    Args:
        arm: The arm.
        law: The key of its law.
        what: ``"norm"``, ``"rotation"`` or ``"gradient"`` (over weight).
        tensors: Layers by number on noise alone, by name in nets.
        after: Readings count from this share of the steps on.
        until: And up to this one. The prediction always takes what it needs from the end.
    """

    arm: str
    law: str
    what: str
    tensors: tuple[str, ...]
    after: float
    until: float = 1.0

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,)."""
        spec, law = results.spec(self.arm, size), LAWS[self.law]
        logs_PS = []
        for tensor in self.tensors:
            if isinstance(spec, NoiseOnlyRun):
                measured = Late(self.arm, _noise_name(self.what, tensor), self.after, self.until)(results, size)
                layer = int(tensor)
                count, gradient_S = spec.num_weights[layer], np.full(len(measured), spec.gradient_norms[layer])
                start, lam = LATE, law.noise[1]
            else:
                assert isinstance(spec, ImageRun)
                measured = Late(self.arm, _net_name(self.what, tensor), self.after, self.until)(results, size)
                squared = Late(self.arm, f"trace/{tensor}/norm_gradient_sq", LAST, squared=True)
                count, gradient_S, start = num_weights(tensor, spec.width), squared(results, size), LAST
                assert law.net is not None
                lam = law.net[1]
            name = "root_second_moment" if isinstance(spec, NoiseOnlyRun) else "trace/root_second_moment"
            moment_S = np.ones(len(measured))
            if self.law == "adams":
                moment_S = Late(self.arm, name, start)(results, size)
            predicted = [
                _of(law.says(spec.lr, lam, count, gradient, moment), self.what)
                for gradient, moment in zip(gradient_S.tolist(), moment_S.tolist(), strict=True)
            ]
            logs_PS.append(np.log(measured / np.array(predicted)))
        ratios: Numbers = np.exp(np.mean(logs_PS, axis=0))
        return ratios


def _noise_name(what: str, layer: str) -> str:
    return f"{'gradient_ratio' if what == 'gradient' else what}/{layer}"


def _net_name(what: str, tensor: str) -> str:
    return f"trace/{tensor}/{'gradient_over_norm' if what == 'gradient' else what}"


def _of(equilibrium: Equilibrium, what: str) -> float:
    return equilibrium.gradient_to_weight if what == "gradient" else float(getattr(equilibrium, what))


def _factor(name: str, values: Measure) -> Quantity:
    return Quantity(name=name, values=values, unit="x", log=True)


LAYERS = ("0", "1")


def _on_noise(law: Law) -> Claim:
    arm = noise_key(law.key)

    def over(what: str, after: float, until: float = 1.0) -> Measure:
        return OverTheory(arm, law.key, what, LAYERS, after, until)

    return Claim(
        key=f"noise-{law.key}",
        text=f"On noise alone {law.words} ends with the norm and the rotation that the formula says.",
        rule=Rule(
            parts=(
                (
                    _factor(f"norm over the formula's, {law.words}, on noise", over("norm", LATE)),
                    within_factor(ON_NOISE),
                ),
                (
                    _factor(f"rotation per step over the formula's, {law.words}, on noise", over("rotation", LATE)),
                    within_factor(ON_NOISE),
                ),
            ),
            stake=(
                (
                    _factor(f"norm over the formula's in the first 100 steps, {law.words}", over("norm", 0.0, 0.02)),
                    exceeds_factor(FAR),
                ),
            ),
        ),
    )


def _apart(law: str) -> Quantity:
    """How much faster the layer with the smaller gradients turns."""
    small, large = (Late(noise_key(law), f"rotation/{layer}", LATE) for layer in LAYERS)
    return _factor(
        f"rotation of a layer with gradients of {SIZES[0]:g} over that of one with {SIZES[1]:g}, {LAWS[law].words}",
        small / large,
    )


def _rise(law: str, at: float = NEAR_END) -> Measure:
    """Gradient over weight late under a falling rate, over that in the middle."""
    arm = noise_key(law, falling=True)
    near, middle = (Late(arm, "gradient_ratio/1", place - 0.01, place + 0.01) for place in (at, MIDDLE))
    return near / middle


def _in_net(law: Law) -> Claim:
    arm = net_key(law.key)

    def over(what: str, after: float, until: float = 1.0) -> Measure:
        return OverTheory(arm, law.key, what, CONVOLUTIONS, after, until)

    return Claim(
        key=f"net-{law.key}",
        text=f"In a ResNet, too, the 3x3 convolutions end with the norm and the rotation of the formula: {law.words}.",
        rule=Rule(
            parts=(
                (
                    _factor(f"norm over the formula's, mean of the 3x3 convolutions, {law.words}", over("norm", LAST)),
                    within_factor(IN_NETS),
                ),
                (
                    _factor(
                        f"rotation per step over the formula's, mean of the 3x3 convolutions, {law.words}",
                        over("rotation", LAST),
                    ),
                    within_factor(IN_NETS),
                ),
            ),
            stake=(
                (
                    _factor(
                        f"norm over the formula's in the first epoch, mean of the 3x3 convolutions, {law.words}",
                        over("norm", 0.0, 0.051),
                    ),
                    exceeds_factor(IN_NETS),
                ),
            ),
        ),
    )


def _elsewhere(key: str, text: str, name: str, arm: str, law: str, what: str, tensors: tuple[str, ...]) -> Claim:
    return Claim(
        key=key,
        text=text,
        rule=Rule(parts=((_factor(name, OverTheory(arm, law, what, tensors, LAST)), exceeds_factor(FAR)),)),
    )


def _expected_rise(at: float) -> float:
    """The root of the rate in the middle of a cosine over that at a share of the run."""
    return math.sqrt((1 + math.cos(math.pi * MIDDLE)) / (1 + math.cos(math.pi * at)))


CLAIMS = (
    *(_on_noise(law) for law in LAWS.values()),
    Claim(
        key="balanced",
        text="AdamW and AdamS turn layers with small and with large gradients alike.",
        rule=Rule(
            parts=((_apart("adamw"), within_factor(BALANCED)), (_apart("adams"), within_factor(BALANCED))),
            stake=((_apart("adam-l2"), exceeds_factor(FAR)),),
        ),
    ),
    Claim(
        key="unbalanced",
        text="Adam with L2 does not: a layer with ten times the gradients turns 10^(1/3) times less a step.",
        rule=Rule(
            parts=((_apart("adam-l2"), within_factor(BALANCED, around=float((SIZES[1] / SIZES[0]) ** (1 / 3)))),),
        ),
    ),
    Claim(
        key="late-rise",
        text="Under a falling rate gradient over weight rises as sqrt(2 lam / lr): the late rise of gradient norms.",
        rule=Rule(
            parts=(
                (
                    _factor(
                        f"gradient over weight at {NEAR_END:.0%} of a cosine over that at {MIDDLE:.0%}, SGDW, on noise",
                        _rise("sgdw"),
                    ),
                    within_factor(IN_NETS, around=_expected_rise(NEAR_END)),
                ),
            )
        ),
    ),
    Claim(
        key="rise-lags",
        text="At the end of a cosine the formula runs ahead: the balance takes longer than what is left of the run.",
        rule=Rule(
            parts=(
                (
                    _factor(
                        f"gradient over weight at {END:.0%} of a cosine over that at {MIDDLE:.0%}, SGDW, on noise",
                        _rise("sgdw", END),
                    ),
                    below(_expected_rise(END) / FAR),
                ),
            )
        ),
    ),
    Claim(
        key="corrected",
        text="With lam in proportion to the rate (Corrected) there is no such rise.",
        rule=Rule(
            parts=(
                (
                    _factor(
                        f"gradient over weight at {NEAR_END:.0%} of a cosine over that at {MIDDLE:.0%}, Corrected, on noise",
                        _rise("corrected"),
                    ),
                    within_factor(IN_NETS),
                ),
            ),
            stake=(
                (
                    _factor(
                        f"gradient over weight at {NEAR_END:.0%} of a cosine over that at {MIDDLE:.0%}, SGDW, on noise",
                        _rise("sgdw"),
                    ),
                    exceeds_factor(FAR),
                ),
            ),
        ),
    ),
    *(_in_net(law) for law in LAWS.values() if law.net is not None),
    Claim(
        key="net-gradient",
        text="In a ResNet, too, the gradient over the weight is that of the formula: SGD with L2, 3x3 convolutions.",
        rule=Rule(
            parts=(
                (
                    _factor(
                        "gradient over weight over the formula's, mean of the 3x3 convolutions, SGD with L2",
                        OverTheory(net_key("sgd"), "sgd", "gradient", CONVOLUTIONS, LAST),
                    ),
                    within_factor(IN_NETS),
                ),
            )
        ),
    ),
    _elsewhere(
        "head",
        "The head, whose scale the loss sees, does not follow: it turns by another angle.",
        "rotation per step over the formula's, the head, SGD with L2",
        net_key("sgd"),
        "sgd",
        "rotation",
        (HEAD,),
    ),
    _elsewhere(
        "no-normalization",
        "Nor do the convolutions of a ResNet without normalization.",
        "rotation per step over the formula's, mean of the 3x3 convolutions, SGD with L2, no normalization",
        net_key("sgd", "resnet-plain"),
        "sgd",
        "rotation",
        CONVOLUTIONS,
    ),
    Claim(
        key="before-relaxation",
        text="Before a run has forgotten its start the formula says nothing: AdamW's norm in the third epoch is far above it.",
        rule=Rule(
            parts=(
                (
                    _factor(
                        "norm over the formula's in the third epoch, mean of the 3x3 convolutions, AdamW",
                        OverTheory(net_key("adamw"), "adamw", "norm", CONVOLUTIONS, 0.101, 0.151),
                    ),
                    above(FAR),
                ),
            )
        ),
    ),
)


def arms(
    *, noise: Mapping[str, Any] = NOISE_FIELDS, net: Mapping[str, Any] = NET_FIELDS, plain_lr: float = 0.01
) -> tuple[Arm, ...]:
    """All arms.

    Args:
        noise: Fields of the runs on noise alone.
        net: Fields of the nets.
        plain_lr: Learning rate of the net without normalization, which bears less.

    Returns:
        The arms; size is the width of the nets.
    """
    size = int(net["width"])
    found = []
    for law in LAWS.values():
        lr, lam = law.noise
        own = {"optimizer": law.optimizer, "momentum": law.momentum, "lr": lr, **noise}
        found.append(
            Arm(
                key=noise_key(law.key),
                label=f"noise, {law.words}",
                size=size,
                spec=NoiseOnlyRun(**own, decay=law.decay.format(lam=lam)),
            )
        )
    for key, (words, decay) in FALLING.items():
        schedule = f"cosine(start=1.0, end=0.0, steps={noise['num_steps']})"
        spec = NoiseOnlyRun(**noise, optimizer="sgd", momentum=0.9, lr=0.1, decay=decay, lr_schedule=schedule)
        found.append(Arm(key=noise_key(key, falling=True), label=f"noise, {words}, cosine", size=size, spec=spec))
    for law in LAWS.values():
        if law.net is not None:
            lr, lam = law.net
            momentum: dict[str, Any] = {"momentum": law.momentum} if law.momentum else {}
            run = ImageRun(**net, optimizer=law.optimizer, lr=lr, decay=law.decay.format(lam=lam), **momentum)
            found.append(Arm(key=net_key(law.key), label=f"ResNet, {law.words}", size=size, spec=run))
    run = ImageRun(
        **{**net, "model": "resnet-plain"},
        optimizer="sgd",
        momentum=0.9,
        lr=plain_lr,
        decay=LAWS["sgd"].decay.format(lam=0.01),
    )
    found.append(
        Arm(key=net_key("sgd", "resnet-plain"), label="ResNet without normalization, SGD with L2", size=size, spec=run)
    )
    return tuple(found)


def _points(*, in_nets: bool) -> dict[str, Measure]:
    """Norm and rotation over the formula's, law by law, on noise or in the ResNet."""
    key_of, tensors, after = (net_key, CONVOLUTIONS, LAST) if in_nets else (noise_key, LAYERS, LATE)
    return {
        f"{law.words}, {what}": OverTheory(key_of(law.key), law.key, what, tensors, after)
        for law in LAWS.values()
        if law.net is not None or not in_nets
        for what in ("norm", "rotation")
    }


def _tensors() -> dict[str, Measure]:
    """Rotation over the formula's, tensor by tensor, SGD with L2."""
    return {
        tensor.removesuffix(".weight"): OverTheory(net_key("sgd"), "sgd", "rotation", (tensor,), LAST)
        for tensor in (*CONVOLUTIONS, *SHORTCUTS, HEAD)
    }


PANELS = (
    PointsPanel(
        slug="noise",
        title="On noise alone: measured over formula",
        x_label="optimizer and quantity",
        y_label="measured over formula",
        rows=by_name(_points(in_nets=False)),
        named=True,
        note="Means over the second half of 5,000 steps and over two layers, with 95 % intervals over seeds.",
    ),
    PointsPanel(
        slug="net",
        title="In a ResNet: measured over formula",
        x_label="optimizer and quantity",
        y_label="measured over formula",
        rows=by_name(_points(in_nets=True)),
        named=True,
        note="Geometric means over the six 3x3 convolutions, last 15 % of the steps, with 95 % intervals over seeds.",
    ),
    PointsPanel(
        slug="tensors",
        title="Which tensors follow",
        x_label="tensor",
        y_label="rotation per step over the formula's",
        rows=by_name(_tensors()),
        named=True,
        note="SGD with L2, last 15 % of the steps, with 95 % intervals over seeds.",
    ),
    PointsPanel(
        slug="late-rise",
        title="The late rise of the gradient",
        x_label="step",
        y_label="gradient over weight, layer with large gradients",
        rows=along(
            {words: (noise_key(key, falling=True), "gradient_ratio/1") for key, (words, _) in FALLING.items()},
            x="step",
            bars="range",
        ),
        log_y=True,
        note="On noise alone, a cosine to 0. Bars reach from the lowest to the highest seed.",
    ),
)

PAPER_NET = {"num_train": None, "width": 64, "num_epochs": 200, "augmentation": "flip-crop"}
SMOKE_NOISE = {**NOISE_FIELDS, "num_weights": (40, 40), "num_replicas": 2, "num_steps": 200, "eval_every": 2}
SMOKE_NET = {**NET_FIELDS, "num_train": 64, "num_test": 50, "width": 4, "batch_size": 32}

EQUILIBRIUM = Study(
    name="equilibrium",
    title="Where decay and updates balance",
    source="Kosson et al. 2023 (arXiv 2305.17212) and Defazio 2025 (arXiv 2506.02285); SGDS and AdamS of Xie et al. 2023"
    " (arXiv 2011.11152)",
    claim="Weights whose scale the loss does not see end at a norm, and turn by an angle, that lr, lam, momentum and the size"
    " of the gradients say.",
    claims=CLAIMS,
    panels=PANELS,
    size_name="width",
    doc_panels=("net", "tensors"),
    presets=presets(
        smoke=Preset(
            description="40 weights, 200 steps; ResNet of width 4",
            budget="30 seconds",
            arms=arms(noise=SMOKE_NOISE, net=SMOKE_NET),
        ),
        laptop=Preset(
            description="two layers of 1,000 weights for 5,000 steps; ResNet of width 8, 5,000 images at 14 x 14, 20 epochs",
            budget="8 minutes on 2 cores",
            arms=arms(),
            num_seeds=5,
        ),
        night=Preset(
            description="as laptop, nets for 40 epochs, and a ladder of widths 8, 16, 32",
            budget="90 minutes on 2 cores",
            arms=tuple(
                arm for width in (8, 16, 32) for arm in arms(net={**NET_FIELDS, "width": width, "num_epochs": 40})
            ),
            num_seeds=8,
        ),
        paper=Preset(
            description="ResNet of width 64 with one block a stage on CIFAR-10, 200 epochs, flips and crops",
            budget="40 runs of an hour on one GPU",
            needs=CIFAR_10_NEEDS,
            arms=arms(net={**NET_FIELDS, **CIFAR_10, **PAPER_NET}),
            num_seeds=5,
        ),
    ),
)
