"""Parameters that share memory: views of one flat buffer, or of each other. A step that moves one moves the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from halflife.laws.copier import storage_key

__all__ = ["Shared", "shared_memory"]


@dataclass(frozen=True, eq=False)  # tensors cannot be compared
class Shared:
    """A parameter whose memory another one has as well.

    Attributes:
        other: The other one.
        inside: Whether all elements of the parameter are elements of the other one.
    """

    other: Tensor
    inside: bool


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the elements of a parameter are, in bytes of its storage."""

    parameter: Tensor
    first: int
    last: int
    is_dense: bool

    def has(self, byte: int) -> bool:
        return self.first <= byte < self.last


def shared_memory(parameters: Iterable[Tensor]) -> dict[int, list[Shared]]:
    """Find the parameters that share memory.

    Args:
        parameters: The parameters, each once; those without values, as on the meta device, have storages as well.

    Returns:
        By the id of each parameter that shares memory, the others that surely have some of its elements.
    """
    storages: dict[int, list[Tensor]] = {}
    for parameter in parameters:
        key = storage_key(parameter) if parameter.numel() else None
        if key is not None:
            storages.setdefault(key, []).append(parameter)
    found: dict[int, list[Shared]] = {}
    for members in storages.values():
        places = sorted(map(_place, members), key=lambda place: place.first) if len(members) > 1 else []
        for index, one in enumerate(places):
            for other in _following(places, index, one.last):
                for mine, its in ((one, other), (other, one)):
                    inside = its.is_dense and its.has(mine.first) and mine.last <= its.last
                    if inside or _touch(mine, its):
                        found.setdefault(id(mine.parameter), []).append(Shared(its.parameter, inside))
    return found


def _following(places: Sequence[_Place], index: int, last: int) -> Iterable[_Place]:
    for place in places[index + 1 :]:
        if place.first >= last:
            return
        yield place


def _place(parameter: Tensor) -> _Place:
    size = parameter.element_size()
    reach = 1 + sum((length - 1) * stride for length, stride in zip(parameter.shape, parameter.stride(), strict=True))
    reach, first = int(reach), int(parameter.storage_offset()) * size
    return _Place(parameter, first, first + reach * size, reach == parameter.numel())


def _touch(one: _Place, other: _Place) -> bool:
    """Return whether two parameters whose bytes lie among each other surely have an element in common.

    Columns of one matrix lie among each other and have none; the first and the last byte of a parameter are its own.
    """
    of_other = one.is_dense and (one.has(other.first) or one.has(other.last - 1))
    return of_other or (other.is_dense and (other.has(one.first) or other.has(one.last - 1)))
