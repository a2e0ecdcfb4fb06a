"""How low the precision of a language model's run is: what is rounded, and how its weights are kept between steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from halflife.errors import UserError
from halflife.rules.base import Rule
from halflife.rules.registry import check_decay_text

if TYPE_CHECKING:
    from halflife.studies.specs.text import TextRun

__all__ = [
    "APART",
    "ATTENTION_PLACES",
    "AUTOCAST_PLACES",
    "PLACES",
    "STORED",
    "check_precision",
    "in_place_order",
    "is_plain_decay",
]

PLACES = ("weights", "inputs", "outputs", "scores", "mixing", "logits", "residual")
"""Where numbers can be rounded: weights, inputs and outputs of linear layers (the head's outputs are the logits); queries, keys
and their scaled products; attention probabilities, values and their product; logits; the residual stream."""

AUTOCAST_PLACES = PLACES[:-1]
"""What torch's autocast rounds: all but the residual stream."""

ATTENTION_PLACES = ("scores", "mixing")

STORED = ("float32", "nearest", "separate", "stochastic", "accumulated", "masters")
"""How weights are kept between steps."""

APART = ("separate", "accumulated")
"""Of these, where decay and update are two roundings."""


def in_place_order(spec: TextRun, name: str) -> tuple[str, ...]:
    """The places that a field names, in the order of `PLACES`.

    Args:
        spec: The run.
        name: The field.

    Returns:
        The places.

    Raises:
        UserError: It is no tuple of places, or names one twice.
    """
    places = getattr(spec, name)
    wanted = f"some of {', '.join(PLACES)}, each once: change {name}"
    if not isinstance(places, tuple):
        raise UserError(f"{name} is {places!r}, expected a tuple of {wanted}")
    for place in places:
        if place not in PLACES:
            raise UserError(f"{name} has {place!r}, expected {wanted}")
        if places.count(place) > 1:
            raise UserError(f"{name} has {place!r} twice, expected {wanted}")
        if spec.model == "mlp" and place in ATTENTION_PLACES:
            raise UserError(f"{name} has {place!r}, which the MLP does not have: leave it out")
    return tuple(place for place in PLACES if place in places)


def is_plain_decay(decay: str) -> bool:
    """Whether a decay is a fraction of each weight that does not depend on the weights (or none)."""
    parts = check_decay_text(decay).parts() if decay else ()
    return all(isinstance(part, Rule) and part.kind == "rule" for part in parts)


def check_precision(spec: TextRun) -> None:
    """Refuse fields of a run's precision that do not go together.

    Args:
        spec: The run.

    Raises:
        UserError: They do not.
    """
    for name in ("bits", "stored_bits"):
        value = getattr(spec, name)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 23:
            raise UserError(f"{name} is {value!r}, expected an integer from 1 to 23, as bfloat16 has 7: change {name}")
    if not isinstance(spec.watch_precision, bool):
        raise UserError(f"watch_precision is {spec.watch_precision!r}, expected True or False: change watch_precision")
    rounds = bool(spec.rounded or spec.rounded_gradients)
    if spec.bits < 23 and not rounds:
        raise UserError(
            f"bits is {spec.bits} and nothing is rounded, expected places: name them in rounded or rounded_gradients, or"
            " leave bits out"
        )
    if rounds and spec.precision != "float32":
        raise UserError(
            f"precision is {spec.precision!r} and numbers are rounded to {spec.bits} bits, expected one of both: set precision"
            " to 'float32', or leave the places out"
        )
    if spec.stored == "float32" and spec.stored_bits < 23:
        raise UserError(
            f"stored_bits is {spec.stored_bits} and stored is 'float32', expected one of {', '.join(STORED[1:])}: change"
            " stored, or leave stored_bits out"
        )
    if spec.stored != "float32" and spec.precision == "float16":
        raise UserError(
            f"stored is {spec.stored!r} and precision is 'float16', whose scaler skips steps, expected precision 'float32' or"
            " 'bfloat16': change precision"
        )
    if spec.stored in APART and not is_plain_decay(spec.decay):
        raise UserError(
            f"stored is {spec.stored!r} and the decay is {spec.decay!r}, expected a rule whose fraction does not depend on the"
            " weights, such as Decoupled: change decay, or set stored to 'nearest'"
        )
    if spec.compile and spec.reads_precision:
        raise UserError(
            "compile is True in a run whose precision is simulated or watched, expected False: leave compile out"
        )
