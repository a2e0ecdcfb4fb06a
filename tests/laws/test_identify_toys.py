"""``identify`` on toy optimizers whose law is known because it is written here, some of it drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import Optimizer

from halflife.laws import Law, identify


class Toy(Optimizer):
    """SGD with momentum on normalized gradients, and a decay that a subclass or ``fraction`` decides."""

    def __init__(
        self,
        params: Any,
        lr: float,
        weight_decay: float,
        fraction: Callable[[float, float, float], float] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.peak, self.first, self.fraction, self.settings = lr, weight_decay, fraction, settings
        self.count = 0

    def r(self, group: dict[str, Any]) -> float:
        assert self.fraction is not None
        return self.fraction(group["weight_decay"], group["lr"], self.peak)

    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        parameter.mul_(1.0 - self.r(group))

    def after(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Nothing."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.count += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                assert parameter.grad is not None
                state = self.state[parameter]
                state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * parameter.grad
                update = group["lr"] * state["m"] / (state["m"].abs() + 0.1)
                self.decay(parameter, update, group)
                parameter.sub_(update)
                self.after(parameter, group)


def law_of(kind: type[Toy] = Toy, fraction: Callable[[float, float, float], float] | None = None, **how: Any) -> Law:
    return identify(lambda params, lr, weight_decay: kind(params, lr, weight_decay, fraction, **how))


def test_shapes_do_not_differ_in_the_last_digits() -> None:
    """An exponent such as 0.001953125 rounds to six digits differently from shape to shape."""
    for exponent in (0.001953125, 0.0123456785, -0.3333335):
        assert law_of(fraction=lambda lam, lr, peak, b=exponent: lam * lr / 0.05 * peak**b).by_shape == {}  # type: ignore[misc]


# ---- any law c * lam * lr^a * peak^b is recovered


@pytest.mark.parametrize("examples", [10, pytest.param(40, marks=[pytest.mark.slow])])
def test_any_power_law_is_recovered(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(
        c=st.floats(0.2, 3.0),
        a=st.floats(-0.5, 2.0),
        b=st.floats(-1.5, 1.0),
        position=st.sampled_from(["before", "after"]),
    )
    def check(c: float, a: float, b: float, position: str) -> None:
        recovered(c, a, b, position)

    check()


def recovered(c: float, a: float, b: float, position: str) -> None:
    class Placed(Toy):
        def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
            if position == "before":
                parameter.mul_(1.0 - self.r(group))

        def after(self, parameter: Tensor, group: dict[str, Any]) -> None:
            if position == "after":
                parameter.mul_(1.0 - self.r(group))

    scale = 0.05 ** (1.0 - a - b)  # so that r at the probe is c / 1000 for every exponent
    law = law_of(Placed, lambda lam, lr, peak: c * scale * lam * lr**a * peak**b)
    assert law.pathway == "decoupled", law
    assert law.lr_exponent == pytest.approx(a, abs=2e-4)
    assert law.peak_lr_exponent == pytest.approx(b, abs=2e-4)
    assert law.coefficient == pytest.approx(c * scale, rel=2e-3)
    assert (law.position, law.native, law.by_shape) == (position, True, {})
    assert law.fraction == pytest.approx(c / 1000.0, rel=1e-9)


@pytest.mark.parametrize(
    ("fraction", "exponents", "coefficient", "name"),
    [
        (lambda lam, lr, peak: lr * lam, (1, 0), 1, "decoupled"),
        (lambda lam, lr, peak: lr / peak * lam, (1, -1), 1, "independent"),
        (lambda lam, lr, peak: lam, (0, 0), 1, "constant"),
        (lambda lam, lr, peak: lr * lr / peak * lam, (2, -1), 1, "corrected"),
        (lambda lam, lr, peak: lr * lr * lam, (2, 0), 1, None),
        (lambda lam, lr, peak: 2 * lr * lam, (1, 0), 2, None),
        (lambda lam, lr, peak: 1.01 * lr * lam, (1, 0), 1.01, None),
        (lambda lam, lr, peak: peak * lam, (0, 1), 1, None),
    ],
)
def test_named_laws(fraction: Any, exponents: tuple[float, float], coefficient: float, name: str | None) -> None:
    law = law_of(fraction=fraction)
    assert (law.lr_exponent, law.peak_lr_exponent) == exponents  # exactly: what is near a half is rounded
    assert law.coefficient == pytest.approx(coefficient, rel=1e-5)
    assert (law.name, law.notes) == (name, ())


# ---- decays that are not what they seem


class Twice(Toy):
    """Once per partition, and there are two."""

    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        for _ in range(2):
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])


class OncePerPrecision(Toy):
    """Decays the whole group once for each precision in it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for _ in {parameter.dtype for parameter in group["params"]}:
                torch._foreach_mul_(group["params"], 1.0 - group["lr"] * group["weight_decay"])
        super().step()

    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        """Done."""


class Implicit(Toy):
    def after(self, parameter: Tensor, group: dict[str, Any]) -> None:
        parameter.div_(1.0 + group["lr"] * group["weight_decay"])

    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        """Later."""


class EverySecondStep(Toy):
    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        if self.count % 2 == self.settings.get("phase", 0):
            parameter.mul_(1.0 - 2 * group["lr"] * group["weight_decay"])


class MatricesOnly(Toy):
    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        if parameter.ndim >= 2:
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])


class VectorsOnly(Toy):
    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        if parameter.ndim < 2:
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])


class Captured(Toy):
    """Reads the weight decay once, at construction."""

    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        parameter.mul_(1.0 - group["lr"] * self.first)


class Ignoring(Toy):
    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        """Forgotten."""


class HardWired(Toy):
    """Decays by a number of its own."""

    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        parameter.mul_(1.0 - 0.01 * group["lr"])


class Cautious(Toy):
    """Masks the decay; ``strict`` leaves out elements whose update is 0, ``by`` says what the mask looks at."""

    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        agreement = (update if self.settings.get("by") != "gradient" else parameter.grad) * parameter
        mask = agreement > 0 if self.settings.get("strict") else agreement >= 0
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"] * mask)


class BySize(Toy):
    """Divides by the root mean square of the gradient, as AdamS does with its second moment."""

    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        size = 1.0 / parameter.grad.square().mean().sqrt() if self.settings["of"] == "gradient" else parameter.norm()
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"] * size)


class Rising(Toy):
    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"] * min(self.count, 1000) / 1000)


class AfterWarmup(Toy):
    """Acts from its 18th step on, and not at all in a short probe."""

    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        if self.count > 30:
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])


class InMomentum(Toy):
    """Neither L2 nor decoupled: the decay is averaged together with normalized gradients."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                assert parameter.grad is not None
                state = self.state[parameter]
                direction = parameter.grad / parameter.grad.norm().clamp_min(1e-12) + group["weight_decay"] * parameter
                state["m"] = 0.9 * state.get("m", 0.0) + direction
                parameter.sub_(group["lr"] * state["m"])


class DoublePenalty(Toy):
    """L2 twice, before Adam-like normalization."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.add_(parameter, alpha=2 * group["weight_decay"])
        super().step()

    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        """Done."""


class Quadratic(Toy):
    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"] ** 2)


class Clipped(Toy):
    """Not a power of lr."""

    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        parameter.mul_(1.0 - min(group["lr"], 0.03) * group["weight_decay"])


class WhereOrthogonal(Toy):
    def decay(self, parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        aligned = (parameter * parameter.grad).sum().abs() > 1e-8
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"] * (1.0 if aligned else 0.1))


AS_ADAMW = ("decoupled", (1.0, 0.0), 1.0)


def summary(law: Law) -> tuple[str, tuple[float | None, float | None], float | None]:
    return law.pathway, (law.lr_exponent, law.peak_lr_exponent), law.coefficient


def test_applied_twice() -> None:
    law = law_of(Twice)
    assert summary(law) == ("decoupled", (1.0, 0.0), 2.0)
    assert law.name is None
    assert law.notes == ("a large weight decay takes 1 - (1 - x/2)^2, with x = the r given here: it is applied twice",)
    assert law.fraction == pytest.approx(1 - 0.999**2, rel=1e-12)


def test_once_per_precision() -> None:
    law = law_of(OncePerPrecision)
    assert summary(law) == AS_ADAMW
    assert law.notes == ("in a group that holds two precisions, r is 2 times as large",)


def test_implicit_and_after_the_update() -> None:
    law = law_of(Implicit)
    assert summary(law) == AS_ADAMW
    assert law.position == "after"
    assert "x / (1 + x)" in law.notes[0]


@pytest.mark.parametrize("phase", [0, 1])
def test_every_second_step(phase: int) -> None:
    law = law_of(EverySecondStep, phase=phase)
    assert law.pathway == "other"
    expected = ["0", "0.002"] if phase else ["0.002", "0"]
    assert law.notes[0].startswith("it acts on some steps only: r is ")
    found = law.notes[0].removeprefix("it acts on some steps only: r is ").split(", ")
    assert sorted(set(found)) == sorted(expected)


@pytest.mark.parametrize(("kind", "decaying"), [(MatricesOnly, {"matrix", "convolution"}), (VectorsOnly, {"vector"})])
def test_shapes_that_differ(kind: type[Toy], decaying: set[str]) -> None:
    law = law_of(kind)
    assert set(law.by_shape) == {"matrix", "vector", "convolution"}
    for shape, each in law.by_shape.items():
        expected = AS_ADAMW if shape in decaying else ("none", (None, None), None)
        assert summary(each) == expected, shape
    assert summary(law) == summary(law.by_shape["matrix"])
    assert law.notes[0].startswith("differs by shape: matrix")


def test_captured_is_not_native() -> None:
    law = law_of(Captured)
    assert summary(law) == AS_ADAMW
    assert law.native is False
    assert law.describe() == "decoupled: r = lr * lam"


def test_ignoring_its_weight_decay() -> None:
    law = law_of(Ignoring)
    assert law == Law(pathway="none", fraction=0.0, notes=("its weight_decay has no effect",))


class Skipping(Toy):
    """Leaves matrices to another optimizer, as those for pairs of matrices do when there is no partner."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["params"] = [parameter for parameter in group["params"] if parameter.ndim != 2]
        super().step()


def test_what_is_not_updated_is_not_probed() -> None:
    law = law_of(Skipping, lambda lam, lr, peak: lr * lam)
    assert law.pathway == "not probed"
    assert law.notes[1] == "the optimizer does not move this parameter at all"
    assert summary(law.by_shape["vector"]) == AS_ADAMW


def test_a_decay_of_its_own_is_not_none() -> None:
    law = law_of(HardWired)
    assert law.pathway == "other"
    assert law.fraction is None
    assert law.notes[0] == "without any gradient and at weight_decay 0 the weights shrink by r = 0.0005"


def test_a_decay_that_starts_late_is_not_none() -> None:
    law = law_of(AfterWarmup)
    assert law.pathway == "other"
    assert law.notes == (
        "its weight_decay has an effect, but none in the few steps after the first 12 at a usual value",
    )


def test_cautious() -> None:
    law = law_of(Cautious)
    assert summary(law) == ("cautious", (1.0, 0.0), 1.0)
    assert (law.name, law.notes, law.position, law.native) == ("cautious", (), "before", True)
    assert law.describe() == "cautious: r = lr * lam where update * w >= 0, else 0 (native)"


def test_cautious_at_the_boundary() -> None:
    law = law_of(Cautious, strict=True)
    assert summary(law) == ("cautious", (1.0, 0.0), 1.0)
    assert law.name is None
    assert law.notes == ("elements whose update is 0 do not decay",)


def test_a_mask_by_the_raw_gradient_is_not_cautious() -> None:
    law = law_of(Cautious, by="gradient")
    assert law.pathway == "other"
    assert "which are chosen otherwise than by update * w >= 0" in str(law.notes)


def test_dependence_on_sizes() -> None:
    by_gradient = law_of(BySize, of="gradient")
    assert by_gradient.notes[0] == "it depends on the gradients: 10 times the gradients, 0.1 times the r"
    assert by_gradient.notes[1] == "without any gradient: its weights became infinite or NaN"
    assert "it depends on the size of the weights: 10 times the weights, 10 times the r" in str(
        law_of(BySize, of="weight").notes
    )


def test_dependence_on_time_angle_and_lr() -> None:
    # The probe's first step is the 13th: 13/1000 of lr * lam. Two at weight 0 follow.
    assert law_of(Rising).notes[0].startswith("it changes by step: r is 1.3e-05, 1.6e-05, 1.7e-05")
    orthogonal = law_of(WhereOrthogonal)
    assert summary(orthogonal) == AS_ADAMW
    assert orthogonal.notes == ("where the gradient is orthogonal to the weight, r is 0.1 times as large",)
    assert law_of(Clipped).notes == ("r is not a power of lr: 0.0006, 0.0005, 0.00025 at lr, lr/2, lr/4",)
    assert law_of(Quadratic).notes == ("r is not linear in weight_decay: half the value, 0.25 times the r",)


def test_what_the_state_remembers_is_l2_only_if_it_is_part_of_the_gradient() -> None:
    law = law_of(InMomentum)
    assert (law.pathway, law.name) == ("other", None)
    assert law.notes == ("the optimizer's state remembers it, but it is not part of the gradient",)


def test_a_doubled_penalty() -> None:
    law = law_of(DoublePenalty)
    assert (law.pathway, law.name) == ("l2-preconditioned", None)
    assert law.notes == ("2 * lam * w is added to the gradient",)


@settings(max_examples=10, deadline=None)
@given(momentum=st.floats(0.05, 0.97), dampening=st.floats(0.0, 0.9), nesterov=st.booleans())
def test_momentum_of_sgd(momentum: float, dampening: float, nesterov: bool) -> None:
    dampening = 0.0 if nesterov else dampening  # torch takes no dampening with Nesterov

    def make(params: Any, lr: float, weight_decay: float) -> Any:
        how: dict[str, Any] = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay, **how)

    law = identify(make)
    assert (law.pathway, law.equivalent_to, law.name) == ("l2", None, "l2")
    within_a_step = 1.0 + momentum if nesterov else 1.0 - dampening
    assert law.coefficient == pytest.approx(within_a_step, abs=2e-4)
    assert law.fraction == pytest.approx(1e-3 * (1.0 - dampening) / (1.0 - momentum), rel=1e-6)
