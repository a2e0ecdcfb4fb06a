"""Whether what a rule removes stays removed: some optimizers write the weights from copies that they keep.

No comparison of weights before and after a step can tell, because nobody knows the update. So the first steps are
computed a second time beside the real ones, for a few small tensors of each group: operation by operation, with weights
from which an eighth more was removed. Where the two sets of weights differ after the step as they did before it, what
a rule removes arrives. A third computation, with the weights as they are, must give what the optimizer gave: else
something that torch's dispatcher does not see has written the weights, and nothing is said.

Optimizers of torch itself are not looked at: the tests compare them with plain loops.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from halflife.optim.actions import Action, Work
from halflife.optim.apply import HostCopy, applies_natively
from halflife.optim.by_parameter import ByParameter

__all__ = ["LEAST", "LITTLE", "Arrival", "Remains", "Undone", "replaced_step"]

TRUSTED = "torch"
EXTRA = 0.125  # the share that is removed in addition, exact in binary
WINDOW = 8  # steps that a difference is followed through
CALLS = 64  # calls after which nobody looks any more
LARGEST = 2**22  # elements that are computed again, in all
MOST = 8  # tensors
LOST = 0.02  # below this nothing is left
LITTLE = 0.25  # below this share, after a whole window, a rule does not do what it says
HALF = 0.45  # below this, if it goes on to fall
FALL = 0.8  # from the middle of a window to its end; what only goes back at times, as Lookahead does, comes to rest
MISMATCH = 0.05  # of the difference, by which the repeated computation may miss the real one
FIRST = 3  # steps in which a decay of the optimizer's own must show, after the first: there Adam sees signs alone
EVEN = 0.05  # of what is lost, by which that may miss the direction of the weights
ENOUGH = 64  # elements that tell by their signs alone
INWARD = 0.9  # share of what is lost that goes towards zero; half of it does by chance, as with a trust ratio
CHANGE = 3.0  # ratio of losses in these steps: those of a momentum add up
MUCH = 0.3  # of the weights; more is no decay
LEAST = 0.01  # of the rule's fraction: below it, another decay is not worth a word


class Undone:
    """A parameter group in which what a rule removes does not arrive.

    Args:
        group: Number of the group in its optimizer.
        share: The share that was left.
    """

    def __init__(self, group: int, share: float) -> None:
        self.group, self.share = group, share


@dataclass(frozen=True)
class Remains:
    """A decay that acts beside the rule.

    Args:
        group: Number of the group in its optimizer.
        r: The fraction that it removes per step.
        inside: Whether the optimizer's own step does it.
    """

    group: int
    r: float
    inside: bool


def replaced_step(optimizer: Optimizer) -> Any:
    """Return what replaces ``step`` on an optimizer; None for what torch's schedulers put around the class's own."""
    step = vars(optimizer).get("step")
    around = hasattr(step, "_wrapped_by_lr_sched") and getattr(step, "__wrapped__", None) is type(optimizer).step
    return None if around else step


class Arrival:
    """Looks at the first steps of one optimizer under a rule.

    Args:
        optimizer: The optimizer; it is not held.

    Attributes:
        undone: What was found; None while nothing speaks against the rule.
        remains: The optimizer's own decay; None if there is none.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.undone: Undone | None = None
        self.remains: Remains | None = None
        self._losing: list[tuple[int, int, float, HostCopy]] = []  # group, tensor, precision, what a step has lost
        self._lost: dict[tuple[int, int], list[float]] = {}  # by group and tensor: the fraction that each step lost
        self._over = type(optimizer).__module__.partition(".")[0] == TRUSTED and replaced_step(optimizer) is None
        self._calls = 0
        self._met: ByParameter[bool] = ByParameter()  # has been updated once: its state exists
        self._replay: _Replay | None = None
        self._pending: list[tuple[int, int, int, HostCopy]] = []  # group, window, its steps, what is left
        self._losses: dict[int, set[int]] = {}  # by group: windows in which nothing was left
        self._windows = 0
        self._middle: dict[tuple[int, int], float] = {}  # by group and window: what was left half way

    def stop(self) -> None:
        """Look no more."""
        self._over = True
        self.abandon()

    def abandon(self) -> None:
        """End a look that the step did not come to the end of."""
        if self._replay is not None:
            self._replay.leave()
            self._replay = None

    def begin(self, optimizer: Optimizer, asked: Sequence[tuple[Action, Work] | None]) -> None:
        """Look at a step that begins; called when the rule has acted.

        Args:
            optimizer: The optimizer.
            asked: What each group asks for.
        """
        if self._over or (self._replay is not None and self._replay.entered):
            return
        self._calls += 1
        if self._calls > CALLS:
            self._over = True
            self._replay = None
            return
        while (stack := _get_current_dispatch_mode_stack()) and isinstance(stack[-1], _Replay):
            stack[-1].leave()  # of a step that failed, whose frames somebody keeps, as notebooks do
        if stack:
            return  # somebody else watches: the stack of modes is theirs
        if self._replay is None:
            self._replay = self._chosen(optimizer, asked)
            self._windows += 1
        if self._replay is not None:
            self._replay.enter()

    def pause(self) -> None:
        """A closure computes: not part of the update."""
        if self._replay is not None:
            self._replay.paused = True

    def resume(self) -> None:
        """The closure has ended."""
        if self._replay is not None:
            self._replay.paused = False

    def end(self) -> None:
        """The update is made: see what is left."""
        replay = self._replay
        if replay is None or not replay.entered:
            return
        replay.leave()
        if replay.warming and (replay.failed or replay.wrote()):
            for parameter in replay.parameters():
                self._met[parameter] = True
        if replay.failed:
            self._replay = None
            return
        if not replay.wrote():
            return
        replay.steps += 1
        if replay.warming:
            for group, index, precision, numbers in replay.losses():
                self._losing.append((group, index, precision, HostCopy(numbers)))
            for _ in replay.left():
                pass  # it goes on from what is left
            if replay.steps >= FIRST:
                self._replay = None
            return
        for group, left in replay.left():
            self._pending.append((group, self._windows, replay.steps, HostCopy(left)))
        if self.read(wait=False) or replay.steps >= WINDOW:
            self._replay = None

    def read(self, *, wait: bool) -> bool:
        """Take in what has become known.

        Args:
            wait: Whether to wait for a device.

        Returns:
            Whether the present window is decided.
        """
        decided = False
        while self._losing and (wait or self._losing[0][3].is_there()):
            group, index, precision, copy = self._losing.pop(0)
            self._take_loss(group, index, precision, copy.numbers())
        while self._pending and (wait or self._pending[0][3].is_there()):
            group, window, steps, copy = self._pending.pop(0)
            share = copy.read()
            if share < LOST:  # not NaN
                decided = True
                self._losses.setdefault(group, set()).add(window)
                if len(self._losses[group]) >= 2:
                    self.undone = Undone(group, 0.0)
            elif steps == WINDOW // 2:
                self._middle[group, window] = share
            elif steps >= WINDOW:
                falls = share < FALL * self._middle.get((group, window), 0.0)
                if share < LITTLE or (share < HALF and falls):
                    self.undone = Undone(group, share)
                self._over = self._over or not self._losses
        return decided

    def _take_loss(self, group: int, index: int, precision: float, numbers: Sequence[float]) -> None:
        """Take in by how much a difference of the weights has shrunk in one of the first steps."""
        dd, ld, ll, uu, uw, ww, missed, gradient, outward, elements = numbers
        lost = self._lost.setdefault((group, index), [])
        r = ld / dd if dd > 0.0 else 0.0
        even = ll - ld * r <= EVEN**2 * ll
        even = even or (elements >= ENOUGH and ld + outward >= INWARD * (ld + 2.0 * outward))
        # An update that is in proportion to the weights as a whole is that of a trust ratio, if there is a gradient.
        of_the_gradient = uu - 2.0 * r * uw + r * r * ww
        decay = gradient == 0.0 or of_the_gradient > EVEN**2 * uu
        lost.append(r if missed < MISMATCH and even and decay and 32.0 * precision < r < MUCH else 0.0)
        last = lost[1:]
        steady = len(lost) == FIRST and 0.0 < max(last) < CHANGE * min(last)
        if steady and (self.remains is None or self.remains.r < max(last)):
            self.remains = Remains(group, max(last), inside=True)

    def _chosen(self, optimizer: Optimizer, asked: Sequence[tuple[Action, Work] | None]) -> _Replay | None:
        """Choose a few small tensors of each group in which the rule acts beside the optimizer's own decay."""
        found: list[tuple[int, Tensor]] = []
        budget = LARGEST
        for index, each in enumerate(asked):
            if each is None or each[0].penalty or not _acts(*each):
                continue
            work = each[1]
            if isinstance(work.answer, float) and applies_natively(optimizer, work.group):
                continue
            sizes = sorted(
                (parameter for parameter in work.group["params"] if _is_plain(parameter)),
                key=lambda tensor: tensor.numel(),
            )
            fitting = [parameter for parameter in sizes if parameter.numel() <= budget // 2]
            for parameter in [fitting[0], fitting[-1]] if len(fitting) > 1 else fitting:
                if len(found) < MOST and parameter.numel() <= budget:
                    found.append((index, parameter))
                    budget -= parameter.numel()
        if not found:
            return None
        warming = any(parameter not in self._met and not optimizer.state.get(parameter) for _, parameter in found)
        return _Replay(found, warming=warming)


def _acts(action: Action, work: Work) -> bool:
    return work.info.lr > 0.0 and (action.acts_at_zero or isinstance(work.answer, Tensor) or work.answer > 0.0)


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a parameter will be updated and can be computed with beside the step."""
    return (
        type(tensor) in {Tensor, torch.nn.Parameter}
        and tensor.grad is not None
        and tensor.numel() > 0
        and tensor.is_floating_point()
        and tensor.layout == torch.strided
        and tensor.device.type != "meta"
    )


class _Replay(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves these without types
    """Computes steps again for some tensors, with weights from which more was removed, and with the weights as they are.

    Args:
        chosen: Group number and parameter.
        warming: Whether these are the first steps, in which the optimizer makes its state.
    """

    def __init__(self, chosen: list[tuple[int, Tensor]], *, warming: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.warming, self.steps = warming, 0
        self.entered = self.failed = self.paused = False
        self._chosen = [(group, weakref.ref(parameter)) for group, parameter in chosen]
        self._thread = 0
        self._copies: dict[int, tuple[StorageWeakRef, tuple[Any, ...]]] = {}  # by storage: with more removed, as it is
        self._before: list[Tensor] = []  # the weights when a step began
        self._removed: list[Tensor] = []  # at first
        self._differences: list[Tensor] = []  # now
        self._written: set[int] = set()
        self._mine: set[int] = set()

    def parameters(self) -> list[Tensor]:
        """The parameters that are still there."""
        return [parameter for _, reference in self._chosen if (parameter := reference()) is not None]

    def enter(self) -> None:
        """Begin with a step: what has happened to the weights since the last one happens to the copies too."""
        if not self._removed:
            self._differences = [parameter.detach() * EXTRA for parameter in self.parameters()]
            self._removed = list(self._differences)
        if self.warming:
            self._before = [parameter.detach().clone() for parameter in self.parameters()]
        for (_, reference), difference in zip(self._chosen, self._differences, strict=True):
            parameter = reference()
            if parameter is not None:
                self._copy(parameter)
                self._view(parameter, 0).sub_(difference)
        self._mine = {_key(parameter) for parameter in self.parameters()}
        self._written = set()
        self._thread = threading.get_ident()
        self.entered, self.paused = True, False
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        """End with a step, whether it came to its end or not."""
        if not self.entered:
            return
        stack = _get_current_dispatch_mode_stack()
        if threading.get_ident() == self._thread and stack and stack[-1] is self:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self.entered = False
        else:  # somebody else has entered a mode since: let everything through
            self.failed = True
        gradients = {
            _key(each) for parameter in self.parameters() if (each := parameter.grad) is not None and _plain(each)
        }
        expired = {key for key, each in self._copies.items() if each[0].expired()}  # type: ignore[no-untyped-call]
        self._copies = {key: each for key, each in self._copies.items() if key not in gradients | expired}

    def wrote(self) -> bool:
        """Tell whether the step wrote the weights."""
        return bool(self._written) or {_key(parameter) for parameter in self.parameters()} != self._mine

    @torch.no_grad()
    def left(self) -> Iterator[tuple[int, Tensor]]:
        """Yield for each parameter its group and the share of the difference that is left, NaN if nothing can be said."""
        for index, (group, reference) in enumerate(self._chosen):
            parameter, removed = reference(), self._removed[index]
            if parameter is None:
                continue
            size = removed.double().square().sum()
            if _key(parameter) in self._copies:
                less, same = (self._view(parameter, world).double() for world in (0, 1))
                missed = (same - parameter.detach()).norm() / size.sqrt()
                difference = same - less
            else:  # the weights are another tensor now, and not made from the old one
                missed, difference = torch.zeros_like(size), torch.zeros_like(removed)
            self._differences[index] = difference.to(parameter.dtype)
            share = (difference * removed).sum() / size
            yield group, torch.where((missed < MISMATCH) & (size > 0), share.clamp(min=0.0), torch.nan)

    @torch.no_grad()
    def losses(self) -> Iterator[tuple[int, int, float, Tensor]]:
        """Yield for each parameter its group, its number, its precision, and sums of what the step has lost.

        With the difference d when it began, its loss l, the update u and the weights w: ``d.d, l.d, l.l, u.u, u.w, w.w``, by
        how much of the difference the repeated computation missed the real one, the largest gradient, the part of l.d that
        goes away from zero, and the number of elements.
        """
        if len(self.parameters()) < len(self._chosen):
            return
        for index, (group, reference) in enumerate(self._chosen):
            parameter = reference()
            if parameter is None or _key(parameter) not in self._copies:
                continue
            less, same = (self._view(parameter, world).double() for world in (0, 1))
            d, w = self._differences[index].double(), self._before[index].double()
            loss, u = d - (same - less), w - same
            pairs = ((d, d), (loss, d), (loss, loss), (u, u), (u, w), (w, w))
            missed = (same - parameter.detach()).norm() / d.norm()
            gradient = parameter.grad
            largest = torch.full_like(missed, torch.inf)
            if gradient is not None and gradient.layout == torch.strided:
                largest = gradient.abs().max().to(missed.dtype)
            outward = -(loss * d).clamp(max=0.0).sum()
            sums = [(one * other).sum() for one, other in pairs]
            numbers = torch.stack([*sums, missed, largest, outward, torch.full_like(missed, d.numel())])
            yield group, index, torch.finfo(parameter.dtype).eps, numbers

    def _copy(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        copies = tuple(storage.clone() for _ in range(2))  # type: ignore[no-untyped-call]
        self._copies[storage._cdata] = reference, copies

    def _view(self, tensor: Tensor, world: int) -> Tensor:
        storage = self._copies[_key(tensor)][1][world]
        made = torch.empty((), dtype=tensor.dtype, device=tensor.device)
        return made.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())

    def _has(self, value: Any) -> bool:
        return _plain(value) and _key(value) in self._copies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation, and again with the copies of what it reads and writes."""
        kwargs = kwargs or {}
        if self.failed or self.paused or not any(self._has(each) for each in _tensors((args, kwargs))):
            return func(*args, **kwargs)
        try:
            again = self._again(func, args, kwargs)
        except Exception:
            self.failed = True
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        try:
            again(out)
        except Exception:
            self.failed = True
        return out

    def _again(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Any], None]:
        """Do an operation with the copies; return what is to be done with the real result."""
        arguments = func._schema.arguments
        named = {**dict(zip((each.name for each in arguments), args, strict=False)), **kwargs}
        changed = {each.name for each in arguments if each.alias_info is not None and each.alias_info.is_write}
        if "set_" in func.__name__.split("."):
            self._note(named, changed)
            return _nothing
        lists = func.__name__.startswith(("_foreach", "_fused"))
        length = next((len(each) for each in named.values() if isinstance(each, list | tuple)), 0) if lists else 0
        chosen = list(range(length))
        if lists:
            single = any(self._has(each) for each in named.values() if isinstance(each, Tensor))
            columns = [each for each in named.values() if isinstance(each, list | tuple) and len(each) == length]
            chosen = [n for n in chosen if single or any(self._has(each[n]) for each in columns)]

        def cut(value: Any) -> Any:
            if lists and isinstance(value, list | tuple) and len(value) == length:
                return [value[n] for n in chosen]
            return value

        mine = {name: cut(value) for name, value in named.items()}
        self._note(mine, changed)
        for each in _tensors([mine[name] for name in changed if name in mine]):
            if _plain(each) and not self._has(each):
                self._copy(each)
        if torch.Tag.nondeterministic_seeded in func.tags:  # drawing again would change the user's random numbers
            return lambda out: self._take(mine, changed)
        if not func._schema.returns and not changed:
            return _nothing
        if all("Tensor" not in str(each.type) for each in func._schema.returns) and not changed:
            return _nothing
        results = []
        positional = [each.name for each in arguments if not each.kwarg_only]
        for world in (0, 1):
            other = {name: self._swapped(value, world) for name, value in mine.items()}
            results.append(func(*_leading(other, positional), **_rest(other, positional)))
        return lambda out: self._register(cut(out), results)

    def _note(self, named: dict[str, Any], changed: set[str]) -> None:
        for each in _tensors([named[name] for name in changed if name in named]):
            if _plain(each):
                self._written |= {_key(each)} & self._mine

    def _take(self, named: dict[str, Any], changed: set[str]) -> None:
        """Let the copies be what has been drawn."""
        for each in _tensors([named[name] for name in changed if name in named]):
            if self._has(each):
                for world in (0, 1):
                    self._view(each, world).copy_(each)

    def _swapped(self, value: Any, world: int) -> Any:
        if isinstance(value, list | tuple):
            return [self._swapped(each, world) for each in value]
        return self._view(value, world) if self._has(value) else value

    def _register(self, out: Any, results: list[Any]) -> None:
        """Remember what belongs to new tensors."""
        for real, less, same in zip(*(list(_tensors([each])) for each in (out, *results)), strict=True):
            if not _plain(real) or self._has(real):
                continue
            self._copy(real)
            for world, made in enumerate((less, same)):
                self._view(real, world).copy_(made)


def _nothing(out: Any) -> None:
    """Nothing is to be done with a result."""


def _leading(named: dict[str, Any], names: list[str]) -> list[Any]:
    found = []
    for name in names:
        if name not in named:
            break
        found.append(named[name])
    return found


def _rest(named: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return dict(list(named.items())[len(_leading(named, names)) :]) if named else {}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)


def _plain(value: Any) -> bool:
    return isinstance(value, Tensor) and type(value) in {Tensor, torch.nn.Parameter} and value.layout == torch.strided


def _key(tensor: Tensor) -> int:
    key: int = tensor.untyped_storage()._cdata
    return key
