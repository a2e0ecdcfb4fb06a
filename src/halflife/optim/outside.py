"""What happens to the weights between two steps, and beside a rule within a step, seen from the weights alone.

`halflife.optim.arrival` looks into the step. What is written after it, by a step hook of another library, by a function
that has replaced ``step`` or by the training loop, is seen here: for a few tensors of each group, ``a`` before a step,
``q`` what the rule removed in it, ``c`` at its end, and ``a'`` before the next one, so that ``u = a - q - c`` is the
optimizer's own update and ``d = a' - c`` what came after it. In some steps in a row

- ``d = x q + y u`` with ``x`` near 1: what was removed is put back (x = y = 1: the old weights; y = 0: copies that have
  the update alone; x = y = 0.999: an average in place of the weights);
- ``d`` brings norms back to what they were: the weights are projected on a sphere;
- ``d = -k c``: something shrinks the weights once more;
- ``u = k w`` although all gradients have been zero: the optimizer decays by itself.

A checkpoint that is loaded, an average that is swapped in for an evaluation and weights that are held within bounds are
none of these: they come once, end where they began, or go towards zero only.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.optim.actions import Action, Work
from halflife.optim.apply import HostCopy
from halflife.optim.arrival import LEAST, LITTLE, Remains, Undone, replaced_step
from halflife.optim.norms import local
from halflife.optim.step_hooks import foreign_hooks, step_hooks

__all__ = ["Outside", "foreign"]

CALLS = 24  # steps that are looked at in the beginning, and again when hooks or ``step`` have changed
ALONE = 7  # the same where nothing acts around the steps
CHANGES = 16  # of hooks and ``step``: some come and go with each step
ROW = 4  # steps in a row that must agree
MOST = 8  # tensors
WHOLE = 2**18  # elements of a tensor that is looked at as a whole
FEW = 2**12  # elements of a larger one, about
CLOSE = 0.05  # of the norm, by which what is explained may miss what was seen
KEPT = 0.02  # of the rule's fraction, by which a norm that is kept may move
PARALLEL = 1e-3  # 1 - cos^2 below which two directions are one
STEADY = 1.1  # ratio of fractions that are the same


class _Numbers(NamedTuple):
    """Sums over the elements of one tensor, for one step and what came after it."""

    dd: float
    dq: float
    du: float
    qq: float
    qu: float
    uu: float
    dc: float
    cc: float
    aa: float
    nn: float  # the square of the next weights
    back: float  # of d * q where it is positive
    ua: float
    same: float  # of |u * a|
    gradient: float  # largest
    dg: float
    qg: float
    ug: float
    gg: float  # 0 where there is no gradient
    kept: tuple[float, ...]  # the largest change of a norm from a to a', for the whole, rows, and columns
    grown: tuple[float, ...]  # the largest growth of it from c to a'


_SUMS = _Numbers._fields[:-2]
# Something was removed, and nothing came after it.
UNTOUCHED = _Numbers(**{**dict.fromkeys(_SUMS, 0.0), "qq": 1.0, "gradient": 1.0}, kept=(), grown=())


class Outside:
    """Looks at the weights around the first steps of one optimizer under a rule.

    Args:
        optimizer: The optimizer; it is not held.

    Attributes:
        undone: What is put back; None while nothing speaks against the rule.
        remains: Another decay that was found; None if there is none.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.undone: Undone | None = None
        self.remains: Remains | None = None
        self._left = CALLS
        self._calls = 0
        self._around = _around(optimizer)
        self._changes = 0
        self._looks: list[_Look] = []
        self._groups = 0
        self._fresh = not optimizer.state  # no momentum moves the weights
        self._pending: list[tuple[int, _Look, HostCopy]] = []

    def stop(self) -> None:
        """Look no more."""
        self._left = 0
        self._around = ()
        self.abandon()
        self._looks, self._pending = [], []

    def loaded(self) -> None:
        """A state was loaded: what it remembers may move weights without a gradient."""
        self._fresh = False

    def abandon(self) -> None:
        """Forget a step that did not come to its end, and what came before it."""
        for look in self._looks:
            look.forget()

    def begin(self, optimizer: Optimizer) -> None:
        """See the weights before a step."""
        if not self._around:
            return
        self._calls += 1
        around = _around(optimizer)
        if around != self._around and self._changes < CHANGES:  # what undid the rule may be gone
            self._around, self._left, self.undone = around, CALLS, None
            self._changes += 1
            self._looks, self._pending = [], []
        elif not self._calls & (self._calls - 1) and foreign(optimizer):  # a hook may begin to act late
            self._left = max(self._left, 2 * ROW)
        if self._left <= 0:
            self._looks, self._pending = [], []
            return
        self._left -= bool(self._looks)
        if self._left == CALLS - ALONE and not foreign(optimizer):
            self._left = 0
        for look in self._looks:
            numbers = look.next_step()
            if numbers is not None:
                self._pending.append((look.group, look, HostCopy(numbers)))
        self.read(wait=False)

    def acting(self) -> None:
        """The rule is about to act."""
        for look in self._looks:
            look.acting()

    def acted(self, optimizer: Optimizer, asked: Sequence[tuple[Action, Work] | None]) -> None:
        """The rule has acted, or has set the optimizer's own decay so that it will; at first choose where to look.

        Args:
            optimizer: The optimizer.
            asked: What each group asks for.
        """
        if self._left <= 0:
            return
        if not self._looks or self._groups != len(asked):
            acting = [index for index, each in enumerate(asked) if each is not None and _acts(*each)]
            if acting:
                self._looks, self._groups = _chosen(optimizer, acting), len(asked)
                self._left = self._left if self._looks else 0
            return
        for look in self._looks:
            each = asked[look.group]
            look.acted(0.0 if each is None else _native(each[1]))

    def end(self) -> None:
        """See the weights after a step."""
        for look in self._looks:
            look.end()

    def read(self, *, wait: bool) -> None:
        """Take in what has become known.

        Args:
            wait: Whether to wait for a device.
        """
        groups = set()
        while self._pending and (wait or self._pending[0][2].is_there()):
            group, look, copy = self._pending.pop(0)
            look.take(copy.numbers())
            groups.add(group)
        for group in sorted(groups):
            looks = [look for look in self._looks if look.group == group]
            if self.undone is None:
                acting = [look for look in looks if not look.rests()]
                shares = [_put_back(look.rows, look.elements) for look in acting]
                told = [share for share in shares if share is not None]
                if len(told) == len(shares) and any(_is_outward(look.rows) for look in acting):
                    self.undone = Undone(group, max(told))
            if self.remains is None:
                self.remains = self._remaining(group, looks)
        if groups and self.undone is None and _one_sphere(self._looks):
            self.undone = Undone(self._looks[0].group, 0.0)

    def _remaining(self, group: int, looks: Sequence[_Look]) -> Remains | None:
        shrinks = [_shrinks(look.rows) for look in looks if not look.rests()]
        told = [r for r in shrinks if r is not None]
        if told and len(told) == len(shrinks):
            return Remains(group, max(told), inside=False)
        if self._fresh:
            own = [r for look in looks if (r := _decays(look)) is not None]
            if own:
                return Remains(group, max(own), inside=True)
        return None


def foreign(optimizer: Optimizer) -> list[str]:
    """Name what acts around the steps of an optimizer and is neither torch's nor ours.

    Args:
        optimizer: The optimizer.

    Returns:
        Hooks by their names, and a ``step`` that was replaced on the instance.
    """
    named = [f"the step hook {name}" for name in foreign_hooks(optimizer)]
    step = replaced_step(optimizer)
    if step is not None:
        named.append(f"the function {getattr(step, '__qualname__', type(step).__qualname__)} in place of its step()")
    return named


def _around(optimizer: Optimizer) -> tuple[int, ...]:
    """Return what changes when hooks come or go, or ``step`` is replaced."""
    return (*map(len, step_hooks(optimizer)), id(vars(optimizer).get("step")))


def _native(work: Work) -> float:
    """Return the fraction that the optimizer's own decay has been set to remove."""
    return float(work.group.get("weight_decay", 0.0)) * work.info.lr


class _Look:
    """One tensor around the steps.

    Args:
        group: Number of its group.
        parameter: The parameter; it is not held.
    """

    def __init__(self, group: int, parameter: Tensor) -> None:
        self.group = group
        self.rows: deque[_Numbers] = deque(maxlen=ROW)
        self.epsilon = torch.finfo(parameter.dtype).eps
        mine = local(parameter.detach())
        self.whole = mine.numel() <= WHOLE
        self._kinds = (3 if mine.ndim > 1 else 1) if self.whole else 0
        self._every = max(1, mine.numel() // FEW)
        self._parameter = weakref.ref(parameter)
        self._before: Tensor | None = None
        self._removed: Tensor | None = None
        self._mark: Tensor | None = None
        self._end: Tensor | None = None
        self._gradient = _largest_gradient(parameter)
        self._moves = False  # it has had a gradient, as far as that is known without waiting for a device
        self._slope: Tensor | None = None
        self.elements = 0

    def forget(self) -> None:
        """Forget a step."""
        self._before = self._removed = self._mark = self._end = self._slope = None

    def next_step(self) -> Tensor | None:
        """See the weights before a step; return what the last one and the time after it gave."""
        now, numbers = self._now(), None
        if now is None or (self._before is not None and now.shape != self._before.shape):
            self.rows.clear()
            self.forget()
            return None
        if self._before is not None and self._removed is not None and self._end is not None:
            self.elements = now.numel()
            if self._moves and torch.equal(self._end, now):
                self.rows.append(UNTOUCHED)
            else:
                numbers = self._numbers(self._before, self._removed, self._end, now)
        self.forget()
        self._before = now
        return numbers

    def acting(self) -> None:
        """The rule is about to act, or the step to end."""
        if self._before is not None:
            self._mark = self._now()

    def acted(self, native: float) -> None:
        """The rule has acted; the optimizer will remove a fraction by itself."""
        parameter = self._parameter()
        if self._before is None or parameter is None:
            return
        if not self._moves:  # the step may add to a gradient
            self._gradient = torch.maximum(self._gradient, _largest_gradient(parameter))
            self._moves = self._gradient.device.type == "cpu" and bool(self._gradient != 0.0)
        if _is_readable(parameter.grad):
            self._slope = self._sample(parameter.grad)
        self._remove()
        native = 0.0 if parameter.grad is None else native
        if self._removed is None:
            self._removed = native * self._before
        elif native > 0.0:
            self._removed = self._removed + native * self._before

    def end(self) -> None:
        """See the weights after a step."""
        parameter = self._parameter()
        if self._before is None or self._removed is None or parameter is None:
            self.forget()
            return
        self._remove()
        self._end = self._now()

    def rests(self) -> bool:
        """Return whether nothing was removed from it, as from a bias of zeros."""
        return len(self.rows) == ROW and all(row.qq == 0.0 for row in self.rows)

    def take(self, numbers: Sequence[float]) -> None:
        """Keep what has become known of one step."""
        sums, norms = numbers[: len(_SUMS)], numbers[len(_SUMS) :]
        kept, grown = tuple(norms[: self._kinds]), tuple(norms[self._kinds :])
        self.rows.append(_Numbers(**dict(zip(_SUMS, sums, strict=True)), kept=kept, grown=grown))

    def _remove(self) -> None:
        now = self._now()
        if self._mark is not None and now is not None and now.shape == self._mark.shape:
            removed = self._mark - now
            self._removed = removed if self._removed is None else self._removed + removed
        self._mark = None

    @torch.no_grad()
    def _now(self) -> Tensor | None:
        """Return a copy of the weights, or of some of them, in a type that is exact enough."""
        parameter = self._parameter()
        if parameter is None or not _is_plain(parameter):
            return None
        return self._sample(parameter)

    def _sample(self, tensor: Tensor) -> Tensor:
        mine = local(tensor.detach())
        wide = torch.float32 if mine.device.type == "mps" else torch.float64
        if self.whole:
            return mine.to(wide, copy=True)
        return mine.reshape(-1)[:: self._every].to(wide, copy=True)

    @torch.no_grad()
    def _numbers(self, a: Tensor, q: Tensor, c: Tensor, after: Tensor) -> Tensor:
        d, u = after - c, a - q - c
        g = torch.zeros_like(a) if self._slope is None or self._slope.shape != a.shape else self._slope
        sums = [
            *((x * y).sum() for x, y in ((d, d), (d, q), (d, u), (q, q), (q, u), (u, u), (d, c), (c, c), (a, a))),
            (after * after).sum(),
            (d * q).clamp(min=0.0).sum(),
            (u * a).sum(),
            (u * a).abs().sum(),
            self._gradient.to(a.dtype),
            *((x * g).sum() for x in (d, q, u, g)),
        ]
        norms = [list(zip(*(_norms(each) for each in (a, c, after)), strict=True))] if self.whole else []
        of_kind = norms[0] if norms else []
        kept = [_ratio(later, first).abs().max() for first, _, later in of_kind]
        grown = [_ratio(later, end).max() for _, end, later in of_kind]
        return torch.stack([*sums, *kept, *grown])


def _largest_gradient(parameter: Tensor) -> Tensor:
    """Return the largest element of a gradient; infinity if it is not known."""
    gradient = parameter.grad
    if not _is_readable(gradient):
        return torch.full((), math.inf, dtype=torch.float32, device=local(parameter.detach()).device)
    return local(gradient.detach()).abs().max().to(torch.float32)


def _norms(tensor: Tensor) -> list[Tensor]:
    """Return the norm of a tensor, of its rows and of its columns."""
    norms = [tensor.norm().reshape(1)]
    if tensor.ndim > 1:
        norms += [each.flatten(1).norm(dim=1) for each in (tensor, tensor.transpose(0, 1))]
    return norms


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    return torch.where(other > 0.0, one / other - 1.0, 0.0)


def _is_plain(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and parameter.device.type != "meta" and _is_readable(parameter)


def _is_readable(tensor: Tensor | None) -> TypeGuard[Tensor]:
    """Return whether the part of a tensor that is here is of torch's own kind, and not empty."""
    if tensor is None or tensor.layout != torch.strided:
        return False
    mine = local(tensor.detach())
    return type(mine) in {Tensor, torch.nn.Parameter} and mine.numel() > 0


def _acts(action: Action, work: Work) -> bool:
    return not action.penalty and (isinstance(work.answer, Tensor) or work.answer > 0.0)


def _chosen(optimizer: Optimizer, acting: Sequence[int]) -> list[_Look]:
    """Choose some tensors of each group in which the rule removes something."""
    found: list[_Look] = []
    for index in acting:
        group = optimizer.param_groups[index]
        usable = sorted(
            (each for each in group["params"] if each.grad is not None and _is_plain(each)),
            key=lambda each: each.numel(),
        )
        some = {id(each): each for each in usable[:1] + usable[len(usable) // 2 :][:1] + usable[-1:]}
        found += [_Look(index, each) for each in some.values()]
        if len(found) >= MOST:
            break
    return found[:MOST]


# ---- what rows of numbers say


def _fraction(row: _Numbers) -> float:
    return math.sqrt(row.qq / row.aa) if row.aa > 0.0 else 0.0


def _is_full(rows: Sequence[_Numbers]) -> bool:
    """Return whether in each of some steps in a row something was removed, and something came after."""
    return len(rows) == ROW and all(row.qq > 0.0 and row.dd > 0.0 and math.isfinite(row.dd + row.uu) for row in rows)


def _is_sphere(fractions: Sequence[float], kept: Sequence[float], grown: Sequence[float]) -> bool:
    """Return whether norms are brought back to what they were, which only grows weights where a bound never would."""
    r = min(fractions)
    return max(kept) <= max(KEPT * r, 3e-6) and max(grown) >= max(LITTLE * r, 1e-5)


def _put_back(rows: Sequence[_Numbers], elements: int) -> float | None:
    """Return the share of what was removed that is left, where what comes after the steps puts it back; else None."""
    if not _is_full(rows):
        return None
    fractions = [_fraction(row) for row in rows]
    for kind in range(len(rows[0].kept)):
        if _is_sphere(fractions, [row.kept[kind] for row in rows], [row.grown[kind] for row in rows]):
            return 0.0
    dd, dq, du, qq, qu, uu = (sum(getattr(row, name) for row in rows) for name in ("dd", "dq", "du", "qq", "qu", "uu"))
    alone, missed, x = _beside_updates(rows)
    if alone <= PARALLEL * qq:  # all that moves is along what was removed
        x, missed = 1.0, min(_missed(dd, dq, du, qq, qu, uu, 1.0, y) for y in (0.0, 1.0))
    # What is written back may have another update than this optimizer's: then the standard error of x decides.
    error = math.sqrt(missed / max(1, ROW * elements - 3) / alone) if alone > PARALLEL * qq else math.inf
    if (missed > CLOSE**2 * dd and error > CLOSE) or not 1.0 - LITTLE <= x <= 1.0 + LITTLE:
        return None
    left = max(0.0, 1.0 - x)
    return left if left > CLOSE else 0.0


def _is_outward(rows: Sequence[_Numbers]) -> bool:
    """Return whether something goes back: weights that are held within bounds go on towards zero only."""
    return sum(row.back for row in rows) > LITTLE * LITTLE * sum(row.qq for row in rows)


def _beside_updates(rows: Sequence[_Numbers]) -> tuple[float, float, float]:
    """Fit ``d = x q + y u + z g``.

    Returns:
        The square of what of ``q`` is neither along the updates ``u`` nor along the gradients ``g``; that of what the fit
        misses; and x.
    """
    names = (("dd", "dq", "du", "dg"), ("dq", "qq", "qu", "qg"), ("du", "qu", "uu", "ug"), ("dg", "qg", "ug", "gg"))
    gram = torch.tensor(
        [[sum(getattr(row, name) for row in rows) for name in line] for line in names], dtype=torch.float64
    )
    scale = gram.diagonal().sqrt()
    scale = torch.where(scale > 1e-6 * scale[1] * torch.tensor([0.0, 0.0, 1.0, 0.0]), scale, torch.inf)
    scaled = gram / scale[:, None] / scale[None]
    beside = scaled[:2, :2] - scaled[:2, 2:] @ torch.linalg.pinv(scaled[2:, 2:], rtol=1e-9) @ scaled[2:, :2]
    alone = float(beside[1, 1])
    slope = float(beside[0, 1]) / alone if alone > 0.0 else 0.0
    missed = float(beside[0, 0]) - slope * float(beside[0, 1])
    d, q = float(scale[0]), float(scale[1])
    return alone * q * q, max(0.0, missed) * d * d, slope * d / q


def _missed(dd: float, dq: float, du: float, qq: float, qu: float, uu: float, x: float, y: float) -> float:
    """Return the square of ``d - x q - y u``."""
    return dd + x * x * qq + y * y * uu - 2.0 * x * dq - 2.0 * y * du + 2.0 * x * y * qu


def _one_sphere(looks: Sequence[_Look]) -> bool:
    """Return whether the norm of all weights together is brought back; what is not looked at must not matter."""
    looks = [look for look in looks if not look.rests()]
    if len(looks) < 2 or not all(look.whole and _is_full(look.rows) for look in looks):
        return False
    sums = [
        [sum(getattr(look.rows[n], name) for look in looks) for name in ("aa", "cc", "nn", "qq")] for n in range(ROW)
    ]
    if any(aa <= 0.0 or cc <= 0.0 for aa, cc, _, _ in sums):
        return False
    return _is_sphere(
        [math.sqrt(qq / aa) for aa, _, _, qq in sums],
        [abs(math.sqrt(nn / aa) - 1.0) for aa, _, nn, _ in sums],
        [math.sqrt(nn / cc) - 1.0 for _, cc, nn, _ in sums],
    )


def _shrinks(rows: Sequence[_Numbers]) -> float | None:
    """Return the fraction by which something shrinks the weights after each step; None if nothing does."""
    if not _is_full(rows):
        return None
    fractions = []
    for row in rows:
        bound = _missed(row.dd, row.dq, row.du, row.qq, row.qu, row.uu, 1.0, 1.0) <= CLOSE**2 * row.dd
        if row.dc >= 0.0 or bound or row.dd - row.dc * row.dc / row.cc > CLOSE**2 * row.dd:
            return None
        fractions.append(-row.dc / row.cc)
    least = LEAST * max(_fraction(row) for row in rows)
    return max(fractions) if min(fractions) >= least and max(fractions) <= STEADY * min(fractions) else None


def _decays(look: _Look) -> float | None:
    """Return the fraction that a step without gradients removes beside the rule; None if there is none, or gradients."""
    rows = look.rows
    if len(rows) < 2 or look.elements < 2 or any(row.gradient != 0.0 or row.aa <= 0.0 for row in rows):
        return None
    fractions = [row.ua / row.aa for row in rows]
    towards = all(row.ua >= (1.0 - CLOSE) * row.same for row in rows)
    least = max(LEAST * max(_fraction(row) for row in rows), 4.0 * look.epsilon)
    return max(fractions) if towards and min(fractions) >= least else None
