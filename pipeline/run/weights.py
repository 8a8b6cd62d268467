"""The weights of a network in a checkpoint file: ours, the official code's or other people's."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from models import BITS
from pipeline.run.config_keys import shown
from pipeline.run.errors import UserError

CLASSIFIERS = ("fc.weight", "linear.weight")

# Names under which weights stand in a file; averaged weights are taken where there are any.
_NAMES = (
    "ema", "model_ema", "ema_state_dict", "state_dict_ema",
    "state_dict", "model_state_dict", "model", "net", "network", "module",
)  # fmt: skip
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module")  # parts of names, of modules that wrap
_HOLDERS = ("model", "net", "network")  # attributes that hold the whole network


class Found(NamedTuple):
    """Weights in a file: under which name, and what beside them is left out."""

    name: str
    weights: dict[str, Tensor]
    left: list[str]


class Fit(NamedTuple):
    """Weights for a network: those ``taken`` from a file and the ``fresh`` ones that it lacks."""

    weights: dict[str, Tensor]
    taken: int
    fresh: list[str]
    note: str  # what was taken, in words; empty where that goes without saying


def is_ours(state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint was written by this code, by any version of it."""
    return type(state.get("format")) is int


def find_weights(state: Mapping[Any, Any]) -> Found | None:
    """The weights of a network in a checkpoint, under a usual name or bare; None if it has none."""
    for name in _NAMES:
        inner = state.get(name)
        if isinstance(inner, dict) and (found := find_weights(inner)):
            left = [key for key in state if key != name] + found.left
            return Found(f"{name}.{found.name}".rstrip("."), found.weights, left)
    weights = _tensors(state)
    left = [key for key in state if key not in weights]
    return Found("", weights, left) if weights else None


def _tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors in ``state``, but for what counts the steps of an average."""
    return {
        key: each
        for key, each in state.items()
        if isinstance(key, str) and isinstance(each, Tensor) and key != "n_averaged"
    }


def network_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's weights in a checkpoint, by their names in the network: the averaged ones where
    it has them, with the statistics that they were evaluated with, and without what DataParallel,
    torch.compile and the like put into names."""
    found = find_weights(state)
    weights = found.weights if found else {}
    if is_ours(state):
        statistics = state.get("reestimated")
        return weights | _tensors(statistics if isinstance(statistics, dict) else {})
    names = [_plain_name(name) for name in weights]
    while names and all(name.partition(".")[0] in _HOLDERS for name in names):
        names = [name.partition(".")[2] for name in names]
    if len(set(names)) < len(names):  # two would become one
        return weights
    return dict(zip(names, weights.values(), strict=True))


def _plain_name(name: str) -> str:
    """The name of a weight without the parts that wrappers put in, so "module.fc.weight" is
    "fc.weight"."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def identify(state: Mapping[str, Any]) -> tuple[str, str]:
    """(arch, bits) of a checkpoint; the official ``resnet18_1w1a`` is told by its classifier.

    A network that the official code trained with --a32 also says 1w1a: give model.bits then.
    """
    name = state.get("model")
    name = name if isinstance(name, str) else ""
    arch, _, bits = name.rpartition("_")
    if bits not in BITS:
        arch, bits = name, "32w32a"
    if arch == "resnet18" and "linear.weight" in network_weights(state):
        arch = "resnet18_cifar"
    return arch, bits


def classes_of(state: Mapping[str, Any]) -> int | None:
    """The number of classes of the network in a checkpoint, by its classifier's weight."""
    weights = network_weights(state)
    found = [weights[key] for key in CLASSIFIERS if key in weights]
    return found[0].shape[0] if found and found[0].ndim == 2 else None


def fit_weights(
    own: Mapping[str, Tensor],
    state: Mapping[str, Any],
    path: Path,
    network: str,
    *,
    tuning: bool = False,
) -> Fit:
    """The weights in the checkpoint ``state`` for a network whose ``state_dict`` is ``own``.

    For fine-tuning (``tuning``), what fits by name and shape is taken if that is every convolution
    of both, or all but a classifier for other classes. Else everything must fit, but that the
    counts of batches, which no evaluation reads, may be absent.

    Raises:
        UserError: names, shapes or kinds of numbers do not fit; it names ``path`` and ``network``.
    """
    counts = {key: own[key] for key in own if key.endswith(".num_batches_tracked")}
    weights = counts | network_weights(state)
    fits = [key for key in own if key in weights and own[key].shape == weights[key].shape]
    _check_kinds(own, {key: weights[key] for key in fits}, path)
    wrong = sorted((own.keys() | weights.keys()) - set(fits))
    if wrong and not (tuning and _can_be_tuned(own, weights, fits)):
        raise UserError(_difference(own, weights, wrong, path, network))
    fresh = [key for key in own if key not in fits]
    kept = {key: weights[key] if key in fits else own[key] for key in own}
    return Fit(kept, len(fits), fresh, _note(state, [key for key in wrong if key in weights]))


def _check_kinds(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError where one of ``weights`` holds another kind of numbers than that of the same
    name in ``own``, as integers for floating-point ones; those are never converted."""
    for key, weight in weights.items():
        wanted, dtype = own[key].dtype, weight.dtype
        if dtype != wanted and not (wanted.is_floating_point and dtype.is_floating_point):
            what = "floating-point numbers" if wanted.is_floating_point else str(wanted)
            raise UserError(
                f"checkpoint {path}: {key} is of {dtype}, not of {what}; take one that was saved "
                "before it was converted"
            )


def _can_be_tuned(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], fits: Iterable[str]
) -> bool:
    """Whether a network with the weights ``own`` can be fine-tuned from ``weights`` of which those
    named ``fits`` fit: all but a classifier, or every convolution of both."""
    wrong = (own.keys() | weights.keys()) - set(fits)
    classifier = {part for key in CLASSIFIERS for part in (key, key.replace("weight", "bias"))}
    if own.keys() == weights.keys() and wrong <= classifier:
        return True
    tensors = [*own.items(), *weights.items()]
    convolutions = {key for key, tensor in tensors if tensor.ndim == 4}
    return bool(convolutions) and not convolutions & wrong


def _difference(
    own: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    wrong: list[str],
    path: Path,
    network: str,
) -> str:
    """The line about weights that do not fit."""
    fits = own.keys() - set(wrong)
    if _can_be_tuned(own, weights, fits) and (missing := sorted(own.keys() - weights.keys())):
        remedy = shlex.quote(f"model.weights={path}")
        return (
            f"checkpoint {path} lacks {missing[0]} and {len(missing) - 1} more of a {network}, and "
            f"so computes something else; train from it: {remedy}"
        )
    return (
        f"checkpoint {path} is not of a {network} with these classes "
        f"(first difference: {shown(wrong[0])}); set model.arch, model.bits or model.num_classes"
    )


def _note(state: Mapping[str, Any], unused: list[str]) -> str:
    """What was taken from a file that is not ours, and what was left out of any file."""
    found = find_weights(state)
    if found is None or (is_ours(state) and not unused):
        return ""
    left = [*unused, *([] if is_ours(state) else found.left)]
    where = f"under {shown(found.name)}" if found.name else "that it holds"
    more = f" and {len(left) - 6} more" if len(left) > 6 else ""
    out = f"; left out: {', '.join(shown(key) for key in left[:6])}{more}" if left else ""
    renamed = network_weights(state).keys() != found.weights.keys()
    names = ", by their names without what wraps them" if renamed else ""
    return f"took the weights {where}{names}{out}"


def first_not_finite(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the first weight that holds a NaN or an infinity."""
    return next((key for key, value in weights.items() if not value.isfinite().all()), None)
