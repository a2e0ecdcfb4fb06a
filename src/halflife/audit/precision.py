"""When is a decay too small for the precision of the weights? Then it is rounded away, and no weight changes.

That holds for a decay that is rounded by itself, as ``w.mul_(1 - r)`` is. One that is added to an update before the sum
is rounded arrives on average: the update carries some weights over the edge, and a few more of them with the decay.
Which of the two an optimizer does is measured.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.audit.rows import Row
from halflife.errors import UserError
from halflife.laws.copier import attributes_of
from halflife.laws.isolation import Draws
from halflife.laws.law import NotProbedError
from halflife.laws.probe import Condition, guarded
from halflife.laws.scaling import Scale
from halflife.laws.slots import SIZES, kinds_in, settings_of
from halflife.laws.twins import Copies, Sample
from halflife.optim.attaching import handle_of
from halflife.precision import smallest_effective_fraction

__all__ = ["Arrived", "arrived_of", "is_compensated", "lost_in_precision"]

COMPENSATED = ("kahan", "stochastic", "master", "compens", "fp32_param")  # what low-precision optimizers call it
NO_NUMBER = "no number was found that is the coefficient of its decay"
STEPS = 32
SHAPES = {1: (4096,), 2: (64, 64), 3: (16, 16, 16), 4: (16, 16, 4, 4)}  # of the weights that are stepped
REMEDIES = ("accumulate", "stochastic")
BELOW = 32.0  # times smaller than the smallest effective fraction is a decay that is measured in place of a smaller one
WITHIN = 16.0  # times smaller than the update: then what arrives of it is in proportion to it
SOME = 0.8  # of a decay: where less arrives, it is said
KINDS = 6  # of parameters that are measured


@dataclass(frozen=True)
class Arrived:
    """What is left of a decay after rounding, measured on a copy of the optimizer.

    Attributes:
        share: Of what the same steps remove in float64: 1 where nothing is lost; NaN where it could not be measured.
        alone: Whether not one bit differs from steps without decay: it is rounded by itself.
        gradients: The root mean square of the gradients of these steps.
        own: Whether that is the one of the gradients that the parameter has.
        reason: Why it could not be measured.
    """

    share: float = math.nan
    alone: bool = False
    gradients: float = math.nan
    own: bool = False
    reason: str = ""


def is_compensated(optimizer: Optimizer, row: Row) -> bool:
    """Tell whether an optimizer says that it keeps what rounding would lose: by its settings, or by its state.

    A name is no proof: sums may be compensated for the update, and the decay be rounded by itself.

    Args:
        optimizer: The optimizer.
        row: One of its parameters.

    Returns:
        True if something of a telling name is there and not off.
    """
    settings: dict[str, Any] = {**attributes_of(optimizer), **(row.group.settings if row.group else {})}
    state = getattr(optimizer, "state", None)  # what only steps another optimizer may have none
    settings |= state.get(row.parameter, {}) if isinstance(state, Mapping) else {}
    return any(
        any(word in str(name).lower() for word in COMPENSATED) and value is not None and value is not False
        for name, value in settings.items()
    )


def lost_in_precision(rows: Sequence[Row], optimizers: Sequence[Optimizer]) -> Iterator[tuple[str, list[Row]]]:
    """Find the parameters whose decay rounding takes away.

    Args:
        rows: The parameters.
        optimizers: The optimizers, with any wrapper taken off.

    Yields:
        A sentence for each precision and way of losing it, and the parameters that it is about.
    """
    small: dict[int, list[Row]] = {}
    for row in rows:
        r, dtype = row.r_peak, row.parameter.dtype
        floating = dtype.is_floating_point or dtype.is_complex
        if not r or r < 0.0 or not row.group or not floating or r > smallest_effective_fraction(dtype):
            continue
        handle = handle_of(optimizers[row.group.optimizer])
        if handle is not None and handle.config.low_precision in REMEDIES:
            continue
        small.setdefault(row.group.optimizer, []).append(row)
    lost: dict[tuple[torch.dtype, str], list[tuple[Row, Arrived]]] = {}
    for position, held in small.items():
        arrived = arrived_of(optimizers[position], held)
        for row in held:
            found = arrived[id(row.parameter)]
            way = "alone" if found.alone else "unknown" if math.isnan(found.share) else "some"
            if way == "unknown" and is_compensated(optimizers[position], row):
                continue  # what cannot be measured is believed
            if way != "some" or found.share < SOME:
                lost.setdefault((row.parameter.dtype, way), []).append((row, found))
    for (dtype, way), members in lost.items():
        yield _sentence(dtype, way, members), [row for row, _ in members]


def _sentence(dtype: torch.dtype, way: str, members: Sequence[tuple[Row, Arrived]]) -> str:
    rows, (_, found) = [row for row, _ in members], members[0]
    r = max(row.r_peak or 0.0 for row in rows)
    name, names = str(dtype).removeprefix("torch."), [row.name for row in rows]
    counted = f"{len(rows)} {name} parameter{'s' if len(rows) > 1 else ''}"
    listed = f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
    least = smallest_effective_fraction(dtype)
    if way == "alone":
        what = f"r = {r:.3g} changes no weight of {counted}: rounding to {name} loses every fraction up to {least:.3g}"
    elif way == "some":
        shares = sorted(each.share for _, each in members)
        texts = dict.fromkeys(
            "less than 1 %" if share < 0.01 else f"{100.0 * share:.0f} %" for share in (shares[0], shares[-1])
        )
        gradients = f"gradients of their own size, {found.gradients:.2g}" if found.own else "gradients of size 1"
        what = (
            f"of the decay r = {r:.3g} of {counted} only {' to '.join(texts)} arrives, "
            f"as {STEPS} steps of a copy with {gradients} show: rounding to {name} loses the rest"
        )
    else:
        what = (
            f"r = {r:.3g} of {counted} may change no weight: rounding to {name} loses every fraction up to {least:.3g} "
            f"that is not rounded together with the update, and whether it is could not be measured ({found.reason})"
        )
    return (
        f"{what}; keep float32 master weights, use an optimizer with stochastic rounding or compensated sums, or, for the decay"
        f' alone, attach(..., low_precision="accumulate"): {listed}'
    )


def arrived_of(optimizer: Any, rows: Sequence[Row]) -> dict[int, Arrived]:
    """Measure how much of their decay is left after rounding.

    Copies of the optimizer are stepped with random gradients, in the precision of the parameters and in float64, each
    with and without decay. Parameters with the same settings, precision and dimensions are measured as one.

    Args:
        optimizer: The optimizer.
        rows: Some of its parameters, all of them decaying.

    Returns:
        By the id of each parameter.
    """
    alike: dict[Hashable, list[Row]] = {}
    settings: dict[int, Hashable] = {}
    for row in rows:
        assert row.group is not None
        index = row.group.index
        if index not in settings:
            settings[index] = settings_of(dict(row.group.settings)), row.group.lr, row.group.weight_decay
        parameter = row.parameter
        key = settings[index], parameter.dtype, parameter.ndim, parameter.grad is None
        alike.setdefault(key, []).append(row)
    found: dict[int, Arrived] = {}
    for number, members in enumerate(alike.values()):
        arrived = Arrived(reason=f"there are more than {KINDS} kinds of parameters")
        if number < KINDS:
            try:
                arrived = _measured(optimizer, members[0])
            except (NotProbedError, UserError) as error:
                arrived = Arrived(reason=str(error))
        found |= {id(row.parameter): arrived for row in members}
    return found


def _measured(optimizer: Any, row: Row) -> Arrived:
    assert row.group is not None
    parameter, group = row.parameter, row.group
    if parameter.dtype.is_complex:
        raise NotProbedError("its weights are complex")
    shape = SHAPES.get(parameter.ndim, tuple([2] * parameter.ndim))
    kind = kinds_in({"params": [parameter.detach()]})[0] or "frozen"
    sample = Sample(parameter, group.index, kind, SIZES[: parameter.ndim], 1 if row.seen is None else row.seen.every)
    plain = Copies(optimizer, torch.float64, Scale(), [sample])
    levers = None if plain.handle is not None else [each for each in plain.find_levers() if each.scalable]
    if levers == []:
        raise NotProbedError(NO_NUMBER)
    weights, gradients, own = _material(parameter, plain.slots[0].count, shape, plain.device)

    def stepped(dtype: torch.dtype, lam: float) -> Tensor:
        """Return the weights after all steps, at a multiple of the decay."""
        copies = Copies(optimizer, dtype, Scale(lam=lam or 1.0), [sample], levers)
        draws = Draws(plain.device)

        def run() -> Tensor:
            start = weights if weights.shape[0] > 1 else weights[0]
            instance = copies.build(Condition(lam=float(lam > 0.0)), [start.to(dtype)])
            (held,) = instance.parameters
            for step in range(STEPS):
                for number, each in enumerate(held):
                    each.grad = gradients[step].roll(number).reshape(each.shape).to(dtype)
                for number, one in enumerate(instance.optimizers):
                    draws.seed(1000 * number + step)
                    for _ in range(copies.calls):
                        one.step()
            return torch.stack([each.detach().to(torch.float64) for each in held])

        with guarded(plain.device, torch.float64 if dtype == torch.float64 else torch.float32):
            return draws.repeatable(run, torch.equal)

    still = stepped(torch.float64, 0.0)
    exact = _removed(stepped(torch.float64, 1.0), still, weights)
    if not exact > 0.0:
        raise NotProbedError(NO_NUMBER)
    update = (still - weights.reshape(still.shape)).norm().item() / weights.norm().item() / math.sqrt(STEPS)
    wanted = min(smallest_effective_fraction(parameter.dtype) / BELOW, update / WITHIN)
    factor = 2.0 ** max(0, math.floor(math.log2(max(wanted, 1e-300) / (exact / STEPS))))
    rounded = _removed(stepped(parameter.dtype, factor), stepped(parameter.dtype, 0.0), weights)
    if not math.isfinite(rounded):
        raise NotProbedError(f"in {str(parameter.dtype).removeprefix('torch.')} its weights stop being numbers")
    rms = gradients.square().mean().sqrt().item()
    return Arrived(share=rounded / (factor * exact), alone=rounded == 0.0, gradients=rms, own=own)


def _removed(with_decay: Tensor, without: Tensor, weights: Tensor) -> float:
    """Return the share of the weights that the decay removed; exactly 0 only if not one bit differs."""
    if torch.equal(with_decay, without):
        return 0.0
    start = weights.reshape(with_decay.shape)
    removed = ((without - with_decay) * start).sum() / start.square().sum()
    return removed.item() or math.ulp(0.0)


def _material(
    parameter: Tensor, count: int, shape: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, bool]:
    """Return weights like those of a parameter, gradients of each step, and whether these are of its own size."""
    generator = torch.Generator().manual_seed(13)
    size = (count, *shape)
    weights = torch.randn(size, generator=generator, dtype=torch.float64)
    readable = parameter.device.type != "meta" and parameter.layout == torch.strided and parameter.numel() > 0
    if readable and type(parameter.detach()) is Tensor:
        values = parameter.detach().reshape(-1)
        places = torch.randint(values.numel(), (weights.numel(),), generator=generator)
        drawn = values[places.to(values.device)].to("cpu", torch.float64)
        if bool(drawn.isfinite().all()) and bool(drawn.any()):
            weights = drawn.reshape(size)
    rms, own = 1.0, False
    gradient = parameter.grad
    if gradient is not None and gradient.device.type != "meta" and gradient.layout == torch.strided:
        measured = gradient.detach().to(torch.float32).square().mean().sqrt().item()
        if math.isfinite(measured) and measured > 0.0:
            rms, own = measured, True
    gradients = rms * torch.randn((STEPS, math.prod(shape)), generator=generator, dtype=torch.float64)
    return weights.to(device), gradients.to(device), own
