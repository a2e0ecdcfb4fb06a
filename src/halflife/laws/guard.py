"""A guard: while copies of an optimizer are stepped, nothing is written into the memory of the real tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode, _pop_mode, _push_mode

from halflife.laws.copier import storage_key, world_size
from halflife.laws.law import NotProbedError

__all__ = ["Under", "alike", "directly", "lifted", "picture", "put_back", "read_only"]

_COLLECTIVES = frozenset({"c10d", "_c10d_functional", "c10d_functional", "_c10d_functional_autograd"})
_SIMPLE = frozenset({Tensor, torch.nn.Parameter})
Under = Callable[[Callable[[], object]], object]  # calls code of others, guarded
Written = tuple[tuple[int, str], ...]  # place and name of each argument that an operation writes into


class read_only(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuse every operation that would write into one of these tensors, before it does.

    Operations in place, on lists of tensors, with ``out=``, that give a tensor other memory or another size; and
    communication between processes, where there is more than one. What is set on the tensors themselves without an
    operation (``.data``, ``.grad``, ``.requires_grad``) is put back at the end. What writes past torch (through NumPy,
    or a kernel that torch is not told of) is not seen.

    One guard may be entered several times. An operation takes about 5 microseconds longer (`lifted` is for those
    that need no guard); a tensor 2 in all.

    Args:
        tensors: The tensors, as they are to stay.

    Raises:
        NotProbedError: Within the body, by the operation that is refused; at its end, where a tensor was given other
            memory, another gradient or flag, which were put back.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tensors = list({id(each): each for each in tensors}.values())
        self._ids = {id(each) for each in self._tensors}
        self._keys = {storage_key(each) for each in self._tensors} - {None}
        self._written: dict[Any, Written] = {}
        self._alone = world_size() == 1
        self._before = [picture(each) for each in self._tensors]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return that torch need not wrap the method below: compiled functions run uncompiled where copies step.

        The wrapper takes longer than all that is done here.
        """
        return False

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        moved = [
            (each, before)
            for each, before in zip(self._tensors, self._before, strict=True)
            if not alike(picture(each), before)
        ]
        touched = [name for each, before in moved for name in put_back(each, before)]
        if touched and error is None:
            raise NotProbedError(
                f"its step sets {touched[0]} of a real tensor, which no copy leads to; it was put back; pass in_place=True"
            )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}  # no more than is needed: each operation of each step comes here
        written = self._written.get(func)
        if written is None:
            written = self._written[func] = _written_by(func)
            if not self._alone and func.namespace in _COLLECTIVES:
                del self._written[func]
                raise NotProbedError(
                    f"its step communicates with other processes ({func.__name__}), and a copy is stepped by one alone; "
                    "pass in_place=True in all of them"
                )
        for place, name in written:
            value = args[place] if place < len(args) else kwargs.get(name)
            for each in (value,) if isinstance(value, Tensor) else value or ():
                if isinstance(each, Tensor) and (id(each) in self._ids or storage_key(each) in self._keys):
                    raise NotProbedError(
                        f"its step writes into a real tensor ({func.__name__}), which no copy leads to; "
                        "pass in_place=True"
                    )
        if types and not _SIMPLE.issuperset(types):
            return NotImplemented  # tensors made of others: what is done to those comes here again
        return func(*args, **kwargs)


@contextmanager
def lifted() -> Iterator[Under]:
    """Lift the guard that was entered last while the body, code of halflife, computes: it costs more than what it guards.

    Yields:
        What calls code of others under that guard.
    """
    mode = _get_current_dispatch_mode()
    if not isinstance(mode, read_only):
        yield directly
        return

    def under(call: Callable[[], object]) -> object:
        _push_mode(mode)
        try:
            return call()
        finally:
            _pop_mode()

    _pop_mode()
    try:
        yield under
    finally:
        _push_mode(mode)


def directly(call: Callable[[], object]) -> object:
    """Call code of others, where nothing is to be guarded."""
    return call()


def _written_by(func: Any) -> Written:
    """Return which arguments an operation writes into."""
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def picture(tensor: Tensor) -> tuple[Any, ...]:
    """Return what is set on a tensor without an operation: its memory, gradient and flag."""
    grad = tensor.grad if tensor.is_leaf else None
    if type(tensor) not in _SIMPLE or tensor.layout != torch.strided:  # one that is made of others
        return None, grad, tensor.requires_grad
    where = tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype
    return tensor.untyped_storage(), grad, tensor.requires_grad, where


def alike(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Return whether two pictures of a tensor show the same."""
    same_memory = one[0] is other[0] or (one[0] is not None and one[0]._cdata == other[0]._cdata)
    return same_memory and one[1] is other[1] and one[2:] == other[2:]


def put_back(tensor: Tensor, before: tuple[Any, ...]) -> list[str]:
    """Give a tensor back the memory, gradient and flag that it had; return what it had lost."""
    touched = []
    now, (storage, grad, requires_grad, *where) = picture(tensor), before
    if where and (now[0]._cdata != storage._cdata or now[3:] != tuple(where)):
        shape, stride, offset, dtype = where[0]
        tensor.data = torch.empty(0, dtype=dtype, device=storage.device).set_(storage, offset, shape, stride)
        touched.append("the data")
    if tensor.requires_grad != requires_grad:
        tensor.requires_grad_(requires_grad)
        touched.append("requires_grad")
    if tensor.is_leaf and tensor.grad is not grad:
        tensor.grad = grad
        touched.append("the gradient")
    return touched
