"""The fields of specs as one flat table, whatever a run starts from, and what the sizes of a study are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halflife.studies.evidence.verdicts import StudyResults

__all__ = ["flat_fields", "sentence_start", "size_name", "without_decay"]


def flat_fields(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec's fields in one level: those of the run that it starts from under their plain names, then its own.

    Args:
        spec: As `halflife.studies.specs.RunSpec.to_json` wrote it.

    Returns:
        Name to value, the kind first. A field that both have, ``num_steps`` say, gets the run's own kind before it.

    Examples:
        >>> parent = {"kind": "text", "seed": 1, "lr": 0.1, "num_steps": 90}
        >>> flat_fields({"kind": "text-branch", "seed": 1, "of": parent, "at": 40, "num_steps": 10})
        {'kind': 'text-branch', 'seed': 1, 'lr': 0.1, 'num_steps': 90, 'at': 40, 'branch.num_steps': 10}
    """
    inner = [name for name, value in spec.items() if isinstance(value, Mapping) and "kind" in value]
    if not inner:
        return dict(spec)
    fields = flat_fields(spec[inner[0]]) | {"kind": spec["kind"]}
    own = str(spec["kind"]).rpartition("-")[2]
    for name, value in spec.items():
        if name not in fields and name != inner[0]:
            fields[name] = value
        elif name not in {"kind", "seed", "max_steps", inner[0]}:  # a parent has the same seed, and is cut alike
            fields[f"{own}.{name}"] = value
    return fields


def without_decay(fields: Mapping[str, Any]) -> bool:
    """Whether a run has no weight decay.

    Args:
        fields: From `flat_fields`.

    Returns:
        The answer.
    """
    if "decay" in fields:
        return not fields["decay"] and not fields.get("loss_penalty")
    return fields.get("lam") == 0


def sentence_start(words: str) -> str:
    """Words with their first letter large, and all others as they are.

    Args:
        words: Such as ``"width of the ResNet"``.

    Returns:
        Such as ``"Width of the ResNet"``.

    Examples:
        >>> sentence_start("width of the ResNet")
        'Width of the ResNet'
    """
    return words[:1].upper() + words[1:]


def size_name(results: StudyResults) -> str:
    """What the sizes of a study are: what the study says, or the one field of the specs that equals the size in every arm.

    Returns:
        Such as ``"width"``; ``"size"`` where no field or more than one fits.
    """
    if results.study.size_name:
        return results.study.size_name
    fitting: set[str] | None = None
    for arm in results.arms:
        # The seeds of an arm have one spec but for the seed, so one of them that was started tells.
        specs = (results.headers[identity].get("spec") for identity in arm["runs"].values())
        fields = flat_fields(next(filter(None, specs), {}))
        if fields:
            same = {name for name, value in fields.items() if value == arm["size"] and not isinstance(value, bool)} - {
                "seed"
            }
            fitting = same if fitting is None else fitting & same
    return fitting.pop() if fitting and len(fitting) == 1 else "size"
