"""Where the floor of `Stable` decides how much is removed, and not its lam: said once, and told to whoever asks."""

from __future__ import annotations

import dataclasses
import math
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer

from halflife.optim.apply import HostCopy
from halflife.optim.frames import level_of_the_user
from halflife.rules.base import Part, Rule, StepInfo
from halflife.rules.stable import Stable

__all__ = ["Floor", "FloorWatch", "floor_in", "floors_of"]


@dataclass(frozen=True)
class Floor:
    """A parameter group in which the floor of `Stable` decides: ``rms < floor * lam``, and any larger lam does the same.

    Args:
        group: Number of the group, counted through all attached optimizers.
        rule: The rule.
        lam: The coefficient that holds in the group.
        lr: The learning rate.
        rms: The root mean square of the gradients: the root of the mean second moment.
        r: The fraction that the step removes.
    """

    group: int
    rule: Stable
    lam: float
    lr: float
    rms: float
    r: float

    @property
    def largest_lam(self) -> float:
        """The largest lam that the floor lets through, in the unit of the gradients."""
        return self.rms / self.rule.floor

    @property
    def lam_meant(self) -> float:
        """The lam with which `Stable` would remove ``lr * lam``, as `Decoupled` does with the lam that is there."""
        return self.lam * self.rms

    def __str__(self) -> str:
        """Return a sentence with all numbers and what to do."""
        text = (
            f"the floor of {self.rule!r} decides in parameter group {self.group}, and not its lam: the root mean square"
            f" of the gradients is {self.rms:.2g}, below floor * lam = {self.rule.floor * self.lam:.2g}, so that every lam"
            f" above {self.largest_lam:.2g} removes r = {self.r:.2g} per step; choose a smaller one"
        )
        if self.lam_meant < self.largest_lam:
            text += (
                f": lam = {self.lam_meant:.2g} removes lr * {self.lam:.2g} = {self.lr * self.lam:.2g} here, as"
                f" Decoupled({self.lam:.2g}) does"
            )
        return text


def floor_in(part: Part, info: StepInfo) -> Floor | None:
    """Tell whether the floor of `Stable` decides in one group at one step.

    Args:
        part: What acts on the group, as ``for_group`` returns it.
        info: What the rule is told, with a number as its second moment.

    Returns:
        The numbers; None if lam decides, there is no `Stable`, or no gradient has been different from 0 so far.
    """
    stable = next((each for each in part.parts() if isinstance(each, Stable)), None)
    if stable is None or not info.second_moment > 0.0:  # NaN on SGD, where there is no floor
        return None
    lam, rms = stable.lam_of(info), math.sqrt(info.second_moment)
    if not rms < stable.floor * lam:
        return None
    outermost = next(each for each in part.parts() if isinstance(each, Rule))  # with the schedule around it
    return Floor(info.group, stable, lam, info.lr, rms, float(outermost.fraction(info)))


def floors_of(optimizer: Optimizer) -> dict[int, Floor]:
    """Return the groups of an optimizer in which the floor decided last, by number; none without `Stable`.

    On an accelerator that is the step before the last, because nothing waits for the device.

    Args:
        optimizer: Any optimizer.
    """
    found = WATCHES.get(optimizer)
    watch = None if found is None else found()
    return {} if watch is None else watch.floors


WATCHES: weakref.WeakKeyDictionary[Optimizer, weakref.ref[FloorWatch]] = weakref.WeakKeyDictionary()


class FloorWatch:
    """Warns once when the floor of `Stable` decides on an optimizer.

    Args:
        optimizer: The optimizer.

    Attributes:
        floors: The groups in which it decided last, by number.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.floors: dict[int, Floor] = {}
        self._pending: tuple[HostCopy, list[tuple[Part, StepInfo]]] | None = None
        self._said = False
        WATCHES[optimizer] = weakref.ref(self)

    def look(self, asked: Sequence[tuple[Part, StepInfo]]) -> None:
        """Look at what the groups were told at this step; at numbers on an accelerator a step later.

        Args:
            asked: What acts on each group that decays, and what it was told.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            self._note(pending[0].read(), pending[1])
        if not asked:
            return
        moment = asked[0][1].second_moment  # one for the whole optimizer
        if isinstance(moment, Tensor):
            self._pending = HostCopy(moment), list(asked)
        else:
            self._note(moment, asked)

    def _note(self, moment: float, asked: Sequence[tuple[Part, StepInfo]]) -> None:
        found = (floor_in(part, dataclasses.replace(info, second_moment=moment)) for part, info in asked)
        self.floors = {each.group: each for each in found if each is not None}
        if self.floors and not self._said:
            self._said = True
            warnings.warn(f"{next(iter(self.floors.values()))} (said once)", stacklevel=level_of_the_user())
