"""What a parameter is, told by module type first, by shape next, by name last; and the named policies made of it.

A parameter has one kind: ``"matrices"``, what multiplies activations (linear, convolution, attention, recurrent,
experts, routers); ``"embeddings"``, what is looked up or added (tables, positions, class tokens, codebooks);
``"norms"``; ``"biases"``; ``"others"`` (scales, gates, time constants of state-space models, temperatures).

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

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

from halflife.errors import UserError

__all__ = ["KINDS", "POLICIES", "Use", "kind_of", "uses_of"]

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
        declared: Whether the model itself says that this parameter does not decay.
    """

    name: str
    leaf: str
    owner: nn.Module
    path: tuple[nn.Module, ...]
    declared: bool


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
    declared = {f"{prefix}.{name}" if prefix else name for prefix, m in modules.items() for name in _declared(m)}
    uses: dict[nn.Parameter, list[Use]] = {}
    for prefix, module in modules.items():
        parts = prefix.split(".") if prefix else []
        path = tuple(modules[".".join(parts[:length])] for length in range(len(parts) + 1))
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{leaf}" if prefix else leaf
            says = name in declared or getattr(parameter, "_no_weight_decay", False) is True
            use = Use(name, leaf, module, path, says)
            if isinstance(module, ParametrizationList) and len(path) > 2:
                # The model calls it conv.parametrizations.weight.original1; it is the weight of conv.
                use = replace(use, leaf=f"{parts[-1]}.{leaf}", owner=path[-3])
            elif isinstance(module, nn.ParameterList | nn.ParameterDict) and len(path) > 1:
                use = replace(use, leaf=f"{parts[-1]}_{leaf}", owner=path[-2])
            uses.setdefault(parameter, []).append(use)
    order = {name: rank for rank, (name, _) in enumerate(model.named_parameters())}
    return dict(sorted(uses.items(), key=lambda item: order[item[1][0].name]))


def _described(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}; make an instance of it"
    return f"an object of type {type(value).__name__}"


def _declared(module: nn.Module) -> Sequence[str]:
    """Return the names that a module lists in ``no_weight_decay()``, the convention of timm and Swin."""
    listing = getattr(module, "no_weight_decay", None)
    try:
        listed = listing() if callable(listing) else ()
    except TypeError:  # a method that wants arguments is something else of the same name
        return ()
    return tuple(name for name in listed if isinstance(name, str)) if isinstance(listed, set | list | tuple) else ()


def kind_of(parameter: nn.Parameter, uses: Sequence[Use]) -> tuple[str, str]:
    """Tell what a parameter is, and from what that is seen. A tied weight is a matrix if any of its uses is.

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
    return kind, reason


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
    kind, reason = kind_of(parameter, uses)
    if any(use.declared for use in uses):
        return False, "the model says that it does not decay (no_weight_decay)"
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
    found = TRANSFORMERS_PATTERN.search(first.name.lower())
    if found:
        return False, f"its name has {found[0].strip('.')!r}"
    return True, "neither in a LayerNorm nor named like a bias or a norm"


POLICIES: dict[str, Callable[[nn.Parameter, Sequence[Use]], tuple[bool, str]]] = {
    "matrices": _matrices,
    "everything": _everything,
    "nanogpt": _nanogpt,
    "transformers": _transformers,
}
