"""What may stand inside what.

A part has a kind. ``REFUSED`` says for each wrapper which kinds it cannot hold, and why; every other pair is allowed.
`PerGroup` inside another wrapper is as good as each of its rules.

| | plain rule | `NormTarget`, `Sphere(per="tensor")` | `Sphere` | `Cautious` | `Toward` | `L2` | `PerGroup` |
| --- | --- | --- | --- | --- | --- | --- | --- |
| `Scheduled` | yes | no | no | yes | yes | yes | each rule |
| `Cautious` | yes | no | no | no | no | no | each rule |
| `Toward` | yes | no | no | no | no | no | each rule |
| `PerGroup` | yes | yes | no | yes | yes | yes | no |

A plain rule is one whose fraction is known before the step. ``Scheduled(x, s)`` is of the kind of ``x``:
``Scheduled(Cautious(rule), s)`` acts as ``Cautious(Scheduled(rule, s))``, and on `L2` the schedule multiplies lam.
"""

from __future__ import annotations

__all__ = ["REFUSED"]

_HELD = "it holds a norm, and a norm that is held is not an amount that can be scaled; attach it without a schedule"
_NO_FRACTION = "it sets the norm of the weights after the step, and its fraction is not known before it"
_PENALTY = "a penalty enters the gradient and removes no fraction; attach it by itself, or take Decoupled instead"
_WHICH_SIGN = (
    "Cautious compares the update with the sign of w, Toward decays w - reference, and which of the two signs would"
    " count is not defined; use one of them"
)

REFUSED: dict[str, dict[str, str]] = {
    "Scheduled": {"norm": _HELD, "net norm": _HELD},
    "Cautious": {
        "norm": _NO_FRACTION,
        "net norm": _NO_FRACTION,
        "Cautious": "the mask of one Cautious is all that a second one would do; write one",
        "Toward": _WHICH_SIGN,
        "penalty": _PENALTY,
    },
    "Toward": {
        "norm": _NO_FRACTION,
        "net norm": _NO_FRACTION,
        "Cautious": _WHICH_SIGN,
        "Toward": "a weight can decay towards one reference only; write one Toward",
        "penalty": _PENALTY,
    },
    "PerGroup": {
        "net norm": 'its norm runs over all groups; use Sphere(..., per="tensor"), or attach it alone',
        "PerGroup": "the groups are counted once; write all rules into one list",
    },
}
