"""What a parameter is, told by module type first, by shape next, by name last; and the named policies made of it.

A parameter has one kind: ``"matrices"``, what multiplies activations (linear, convolution, attention, recurrent,
experts, routers); ``"embeddings"``, what is looked up or added (tables, positions, class tokens, codebooks);
``"norms"``; ``"biases"``; ``"others"`` (scales, gates, time constants of state-space models, temperatures, and every
matrix that the model itself declares not to decay, see `declared`).

Examples:
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    >>> for parameter, uses in uses_of(model).items():
    ...     print(uses[0].name, *kind_of(parameter, uses), sep=" | ")
    0.weight | embeddings | embedding (Embedding)
    1.weight | matrices | weight of Linear
    1.bias | biases | bias of Linear
    2.weight | norms | parameter of a norm (LayerNorm)
    2.bias | norms | parameter of a norm (LayerNorm)
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

from halflife.errors import UserError
from halflife.groups.names import without_wrappers
from halflife.numbers import check_non_negative

__all__ = ["KINDS", "POLICIES", "Use", "declared", "kind_of", "own_settings", "uses_of"]

KINDS = ("matrices", "embeddings", "norms", "biases", "others")

MATRIX_MODULES = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
NORM_MODULES = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)
EMBEDDING_MODULES = (nn.Embedding, nn.EmbeddingBag)

# The last resort, for tensors that a user's own module holds directly. Whole words, never parts of words: a matrix
# called debias_head is no bias. A name that ends in one of MATRIX_WORDS, as rel_pos_bias_proj, is a matrix's.
MATRIX_WORDS = {"proj", "projection", "kernel", "matrix", "linear", "conv", "dense", "fc", "mlp", "mixing", "head"}
WORDS: tuple[tuple[str, frozenset[str]], ...] = (
    ("biases", frozenset({"bias", "biases"})),
    ("norms", frozenset({"norm", "layernorm", "rmsnorm", "ln", "gain"})),
    (
        "embeddings",
        frozenset({"emb", "embed", "embedding", "embeddings", "token", "tokens", "codebook", "codevectors"}),
    ),
    ("embeddings", frozenset({"pos", "position", "positions", "positional", "ape"})),
    ("embeddings", frozenset({"latent", "latents", "queries", "prompt", "prompts"})),  # learned inputs
    ("others", frozenset({"gamma", "beta", "scale", "log"})),  # log: kept as a logarithm, such as A_log
)
MATRIX_CLASSES = {"linear", "conv", "dense", "projection", "proj", "attention", "mlp", "experts", "head", "decoder"}


@dataclass(frozen=True)
class Use:
    """One place where a parameter stands: a tied weight has several.

    Attributes:
        name: Its name in the model.
        leaf: The last part of the name, as its module calls it.
        owner: The module that holds it: beyond lists of parameters, and for a parametrized tensor the module that it
            is a tensor of.
        path: All modules that it is in, from the model itself to the one that holds it.
        bare: Its name without what wrappers such as DistributedDataParallel put into it.
        declared: Where the model itself says that this parameter does not decay, in words; empty if it does not.
    """

    name: str
    leaf: str
    owner: nn.Module
    path: tuple[nn.Module, ...]
    declared: str
    bare: str = ""


def uses_of(model: nn.Module) -> dict[nn.Parameter, list[Use]]:
    """Find every place of every parameter.

    Args:
        model: The model; nothing in it is changed or moved.

    Returns:
        The uses of each parameter, in the order of ``model.named_parameters()``, the first name first.

    Raises:
        UserError: If it is not a model.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"expected a model, a torch.nn.Module, got {_described(model)}")
    modules = dict(model.named_modules(remove_duplicate=False))
    said = _Said(modules)
    uses: dict[nn.Parameter, list[Use]] = {}
    for prefix, module in modules.items():
        parts = prefix.split(".") if prefix else []
        path = _path(prefix, modules)
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{leaf}" if prefix else leaf
            use = Use(name, leaf, module, path, said.about(parameter, name, path), without_wrappers(name, path))
            if isinstance(module, ParametrizationList) and len(path) > 2:
                # The model calls it conv.parametrizations.weight.original1; it is the weight of conv.
                use = replace(use, leaf=f"{parts[-1]}.{leaf}", owner=path[-3])
            elif isinstance(module, nn.ParameterList | nn.ParameterDict) and len(path) > 1:
                use = replace(use, leaf=f"{parts[-1]}_{leaf}", owner=path[-2])
            uses.setdefault(parameter, []).append(use)
    # By identity: activation checkpointing tells other names here than its modules have.
    order = {id(parameter): rank for rank, (_, parameter) in enumerate(model.named_parameters())}
    return dict(sorted(uses.items(), key=lambda item: order.get(id(item[0]), len(order))))


def _path(prefix: str, modules: Mapping[str, nn.Module]) -> tuple[nn.Module, ...]:
    """All modules that a name leads through, from the model itself on."""
    parts = prefix.split(".") if prefix else []
    return tuple(modules[".".join(parts[:length])] for length in range(len(parts) + 1))


def _described(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}; make an instance of it"
    return f"an object of type {type(value).__name__}"


# ---- what a model says of its own parameters

EXCLUDED, KEYWORDS = "no_weight_decay", "no_weight_decay_keywords"
MARK, SETTINGS = "_no_weight_decay", "_optim"
PARAMETRIZED = re.compile(r"parametrizations\.([^.]+)\.original\d*$")


def declared(model: nn.Module) -> dict[int, str]:
    """Find the parameters that a model itself declares not to decay.

    Four conventions are read: ``no_weight_decay()`` of the model or of a module in it, which lists names relative to
    that module (timm); ``no_weight_decay_keywords()``, which lists parts of names (Swin); an attribute
    ``_no_weight_decay`` of a parameter (state-space models); and an attribute ``_optim`` of a parameter, a dict with
    ``weight_decay`` 0 (S4). A list may be any collection or iterator. A name that no parameter has is passed over, as
    timm does; a method that wants arguments is something else of the same name. A method that raises, or that gives
    no names, is not followed, and a warning says so.

    Args:
        model: The model; nothing in it is changed.

    Returns:
        By ``id(parameter)``, where the model says so, in words.

    Raises:
        UserError: If it is not a model.

    Examples:
        >>> class Swin(nn.Linear):
        ...     def no_weight_decay_keywords(self):
        ...         return {"wei"}
        >>> list(declared(Swin(2, 3)).values())
        ["no_weight_decay_keywords() of Swin lists 'wei'"]
    """
    found = {
        id(parameter): [use.declared for use in uses if use.declared] for parameter, uses in uses_of(model).items()
    }
    return {key: reasons[0] for key, reasons in found.items() if reasons}


def own_settings(parameter: nn.Parameter, name: str) -> dict[str, Any]:
    """Read the settings that a parameter brings itself, in an attribute ``_optim`` (the convention of S4).

    Args:
        parameter: The parameter.
        name: Its name, for messages.

    Returns:
        The settings, such as ``{"lr": 0.001, "weight_decay": 0.0}``; empty without any. What is None is left out.

    Raises:
        UserError: If its ``lr`` or ``weight_decay`` is no number >= 0.
    """
    settings = getattr(parameter, SETTINGS, None)
    if not isinstance(settings, Mapping):
        return {}
    own = {key: value for key, value in settings.items() if value is not None and key not in {"params", "param_names"}}
    for key in {"lr", "weight_decay"} & own.keys():
        check_non_negative(f"{key} in {SETTINGS} of {name}", own[key])
    if "weight_decay" in own:
        own["weight_decay"] = float(own["weight_decay"])
    return own


class _Said:
    """What the modules of a model say of parameters in them.

    Args:
        modules: The modules by name.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.keywords: dict[int, list[str]] = {}  # by id of the module
        self.parameters: dict[int, str] = {}  # by id: a list may hold parameters in place of names
        self.names: dict[str, str] = {}
        listed: dict[int, list[object]] = {}
        for prefix, module in modules.items():
            kind = type(module).__name__
            if id(module) not in listed:
                listed[id(module)] = _listed(module, EXCLUDED)
                self.keywords[id(module)] = [w for w in _listed(module, KEYWORDS) if w and isinstance(w, str)]
            for item in listed[id(module)]:
                reason = f"{EXCLUDED}() of {kind} lists it"
                if isinstance(item, str):
                    name = f"{prefix}.{item}" if prefix else item
                    self.names.setdefault(name, reason)
                    self.names.setdefault(without_wrappers(name, _path(prefix, modules)), reason)
                else:
                    self.parameters.setdefault(id(item), reason)

    def about(self, parameter: nn.Parameter, name: str, path: Sequence[nn.Module]) -> str:
        """Return where the model says that a parameter does not decay, or nothing."""
        plain = PARAMETRIZED.sub(r"\1", without_wrappers(name, path))
        reason = self.parameters.get(id(parameter)) or self.names.get(name) or self.names.get(plain)
        if reason:
            return reason
        if _holds(lambda: getattr(parameter, MARK, False)):
            return f"{MARK} is set on it"
        if _holds(lambda: getattr(parameter, SETTINGS)["weight_decay"] == 0):
            return f"{SETTINGS} on it says weight_decay 0"
        parts = name.split(".")
        for depth, module in enumerate(path):
            for word in self.keywords[id(module)]:
                if word in without_wrappers(".".join(parts[depth:]), path[depth:]):
                    return f"{KEYWORDS}() of {type(module).__name__} lists {word!r}"
        return ""


def _listed(module: nn.Module, method: str) -> list[object]:
    """Return the names, or parameters, that a module lists by a method or an attribute of its own.

    Args:
        module: The module.
        method: What the method is called.

    Returns:
        Names and parameters; none where there is no such method or it is something else.
    """
    where = f"{method}() of {type(module).__name__}"
    try:
        value = getattr(module, method, None)
        if isinstance(value, nn.Module):
            return []
        if callable(value):
            if _wants_arguments(value):
                return []
            value = value()
            value = value if not isinstance(value, Iterable) or isinstance(value, str) else list(value)
        elif not isinstance(value, Collection):  # an attribute that is a flag, or nothing
            return []
    except Exception as error:  # whatever a user's method raises
        text = f": {error}" if str(error) else ""
        _warn(
            f"{where} raised {type(error).__name__}{text}; what it excludes from weight decay is not known: correct it"
        )
        return []
    if value is None:
        return []
    items = [value] if isinstance(value, str) else list(value) if isinstance(value, Collection) else [value]
    wrong = next((item for item in items if not isinstance(item, str | nn.Parameter)), None)
    if wrong is not None:
        _warn(
            f"{where} gave {_described(wrong)} where the name of a parameter was expected; it was passed over: correct it"
        )
    return [item for item in items if isinstance(item, str | nn.Parameter)]


def _holds(test: Callable[[], object]) -> bool:
    """Return whether a test of what a user wrote is true; False where it cannot be done."""
    try:
        return bool(test())
    except Exception:  # no such attribute, or of a type that cannot be compared
        return False


def _wants_arguments(method: Callable[..., object]) -> bool:
    try:
        inspect.signature(method).bind()
    except TypeError:
        return True
    except ValueError:  # a builtin without a signature
        return False
    return False


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)


def kind_of(parameter: nn.Parameter, uses: Sequence[Use]) -> tuple[str, str]:
    """Tell what a parameter is, and from what that is seen. A tied weight is a matrix if any of its uses is.

    A matrix that the model declares not to decay is of the kind ``"others"``.

    Args:
        parameter: The parameter; its dtype and shape are looked at, never its values.
        uses: Its places.

    Returns:
        One of `KINDS`, and the reason in a few words.
    """
    answers = [_kind_at(parameter, use) for use in uses]
    kind, reason = next((answer for answer in answers if answer[0] == "matrices"), answers[0])
    if kind == "matrices" and len(uses) > 1:
        reason = f"{reason} (tied: {', '.join(use.name for use in uses)})"
    excluded = _excluded(uses)
    return ("others", f"{reason}, but {excluded}") if kind == "matrices" and excluded else (kind, reason)


def _excluded(uses: Sequence[Use]) -> str:
    return next((use.declared for use in uses if use.declared), "")


def _kind_at(parameter: nn.Parameter, use: Use) -> tuple[str, str]:
    """Return the kind of a parameter at one place: by type, then shape, then name."""
    kind = type(use.owner).__name__
    if isinstance(use.owner, NORM_MODULES):
        return "norms", f"parameter of a norm ({kind})"
    if isinstance(use.owner, EMBEDDING_MODULES):
        return "embeddings", f"embedding ({kind})"
    leaf, _, original = use.leaf.partition(".")
    name, class_name = _words(leaf), _words(kind)
    of_class = _kind_of_class(class_name)
    # Of the two tensors of weight_norm, original0 and weight_g are gains: told by their shape, below.
    if isinstance(use.owner, MATRIX_MODULES) and original in {"", "original"} and name[-1] != "g":
        if "bias" in name:
            return "biases", f"bias of {kind}"
        if "weight" in name and parameter.ndim >= 2:  # also with one row or column: a head with one output
            return "matrices", f"weight of {kind}"
    # Dimensions of size 1 do not count: the gains of weight_norm are (out, 1), those of a layer scale (1, 1, d).
    if sum(size > 1 for size in parameter.shape) < 2:
        if name[-1] == "bias":
            return ("norms" if of_class == "norms" else "biases"), f"bias of {kind}"
        return (of_class if of_class in {"norms", "embeddings"} else "others"), f"vector or scalar in {kind}"
    if next((word for word in reversed(name) if word not in {"weight", "weights"}), "") in MATRIX_WORDS:
        return "matrices", f"matrix in {kind}"
    if of_class is not None:
        return of_class, f"parameter of {kind}, named like {of_class}"
    for answer, words in WORDS:
        for word in name:
            if word in words:
                return answer, f"named like a parameter that does not multiply activations ({word!r})"
    if leaf == "D" and hasattr(use.owner, "A_log"):
        return "others", "skip weight of a state-space model (D beside A_log)"
    return "matrices", f"matrix in {kind}"


def _words(name: str) -> list[str]:
    """Return the words of a name, in lower case: of ``A_log`` a and log, of ``LlamaRMSNorm`` llama, rms and norm."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)] or [name.lower()]


def _kind_of_class(words: Sequence[str]) -> str | None:
    """Return what the name of a class says about the parameters in it, if anything."""
    if next((word for word in reversed(words) if len(word) > 1), "") in MATRIX_CLASSES:  # not the d of Conv2d
        return None
    if any(word.endswith("norm") or word == "normalization" for word in words):
        return "norms"
    if any(word.startswith("embed") for word in words) or {"position", "encoding"} <= set(words):
        return "embeddings"
    return "biases" if words[-1] == "bias" else None


# ---- the policies


def _matrices(parameter: nn.Parameter, uses: Sequence[Use]) -> tuple[bool, str]:
    excluded = _excluded(uses)
    if excluded:
        return False, f"the model says that it does not decay: {excluded}"
    kind, reason = kind_of(parameter, uses)
    return kind == "matrices", reason


def _nanogpt(parameter: nn.Parameter, uses: Sequence[Use]) -> tuple[bool, str]:
    return parameter.ndim >= 2, f"{parameter.ndim} dimensions"


def _everything(parameter: nn.Parameter, uses: Sequence[Use]) -> tuple[bool, str]:
    return True, "everything decays"


# transformers 5.23.0, Trainer.get_decay_parameter_names; a test compares with the function itself.
TRANSFORMERS_PATTERN = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def _transformers(parameter: nn.Parameter, uses: Sequence[Use]) -> tuple[bool, str]:
    first = uses[0]  # the Trainer goes by the first name of a tied weight
    if any(isinstance(module, nn.LayerNorm) for module in first.path[1:]):
        return False, "in a LayerNorm"
    found = TRANSFORMERS_PATTERN.search(first.bare.lower())
    if found:
        return False, f"its name has {found[0].strip('.')!r}"
    return True, "neither in a LayerNorm nor named like a bias or a norm"


POLICIES: dict[str, Callable[[nn.Parameter, Sequence[Use]], tuple[bool, str]]] = {
    "matrices": _matrices,
    "everything": _everything,
    "nanogpt": _nanogpt,
    "transformers": _transformers,
}
