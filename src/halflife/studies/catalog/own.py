"""Studies of the user's own: each is read from the file that the user names, and never from one that a store names.

``my_file.py:STUDY`` stands wherever the command line takes the name of a study. The file is executed, as ``python
my_file.py`` does; a manifest records its name for readers, and nothing executes what a manifest records.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from halflife.errors import StoreError, UserError
from halflife.studies.catalog import STUDIES, get_study
from halflife.studies.evidence.claims import Origin, Preset, Study
from halflife.studies.evidence.verdicts import MIN_SEEDS
from halflife.user_code import hidden_arguments, import_file, one_sentence

__all__ = ["explained", "known_studies", "load_again", "load_study", "study_of"]

NAME = "[a-z0-9]+(-[a-z0-9]+)*"
PRESETS = ("smoke", "laptop", "night", "paper")
MAX_SHOWN = 80  # characters of what a store says


def known_studies(names: Sequence[str], extra: Sequence[str] = ()) -> tuple[dict[str, Study], list[str]]:
    """The studies that there are: ours, and those of the files that a user names.

    Args:
        names: Names of studies, or files such as ``my_file.py:STUDY``.
        extra: Further files.

    Returns:
        The studies by name, and the names that ``names`` stand for, each once.

    Raises:
        UserError: A file gives no study, or two of them give studies of one name.
    """
    studies, chosen = dict(STUDIES), list[str]()
    for place, is_chosen in (*((name, True) for name in names), *((name, False) for name in extra)):
        name = place
        if not is_chosen or ":" in place or place.endswith(".py"):
            study = load_study(place)
            name = study.name
            other = studies.setdefault(name, study).origin
            assert other is not None  # `load_study` refuses the names of ours
            assert study.origin is not None
            if (other.path, other.name) != (study.origin.path, study.origin.name):
                raise UserError(
                    f"{study.origin.reference} and {other.reference} are both named {name!r}: give one of them another name"
                )
        if is_chosen:
            chosen.append(name)
    return studies, list(dict.fromkeys(chosen))


def study_of(manifest: Mapping[str, Any], studies: Mapping[str, Study]) -> Study:
    """The study that a manifest is of.

    Args:
        manifest: From a store.
        studies: Those that are known, from `known_studies`.

    Returns:
        The study.

    Raises:
        StoreError: It is a user's own, whose file was not given.
        UserError: There is no such study.
    """
    name, source = manifest["study"], manifest.get("source")
    study = studies.get(name)
    if source is None or (study is not None and study.origin is not None):
        return get_study(name) if study is None else study
    file, title = (source[key][:MAX_SHOWN] for key in ("file", "name"))
    if study is not None:
        raise StoreError(
            f"the store has runs of an own study {name!r} of {file}:{title}, and halflife has a study of that name: give the"
            " own one another name and run it again, its runs are kept"
        )
    raise StoreError(
        f"{name} is an own study, and the store has its runs but not its file: give the file by --study {file}:{title} if you"
        " trust it"
    )


def load_study(reference: str) -> Study:
    """Execute a user's file and take a study from it.

    Args:
        reference: ``path/to/my_file.py:STUDY``.

    Returns:
        The study, with its `Study.origin`.

    Raises:
        UserError: The file is not there or does not import, has no such study, or the study cannot be used.
    """
    place, _, name = reference.rpartition(":")
    if not place.endswith(".py") or not name.isidentifier():
        raise UserError(
            f"the study is {reference!r}, expected a file and a name in it, such as my_file.py:STUDY: name both"
        )
    path = Path(place)
    if not path.is_file():
        raise UserError(f"there is no file {place}, expected the file of an own study: correct its path")
    source = path.read_bytes()
    path = path.resolve()
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else Path(path.name)
    origin = Origin(path=path, name=name, sha256=hashlib.sha256(source).hexdigest(), shown=shown.as_posix())
    module = _module_of(path, origin.module, source)
    found = vars(module).get(name)
    if not isinstance(found, Study):
        there = [key for key, value in vars(module).items() if isinstance(value, Study)]
        what = "has no" if found is None else f"has a {type(found).__name__}, no Study, as"
        raise UserError(
            f"{place} {what} {name}, expected the name of a Study in it ({', '.join(there) or 'it has none'}): name one"
        )
    _check(found, origin.reference)
    for spec in (arm.spec for preset in found.presets.values() for arm in preset.arms):
        if spec.trainer.module == module.__name__ and not hasattr(module, "open_run"):
            raise UserError(
                f"{place} has runs of kind {spec.kind!r} and nothing that trains them, expected a function open_run(spec,"
                " context): write it (docs/own_studies.md)"
            )
    return dataclasses.replace(found, origin=origin)


def load_again(origin: Origin) -> None:
    """Execute the file of a study in another process, so that what is in it can be trained there.

    Raises:
        UserError: The file is not what it was.
    """
    source = origin.path.read_bytes() if origin.path.is_file() else b""
    if hashlib.sha256(source).hexdigest() != origin.sha256:
        raise UserError(
            f"{origin.shown} was changed while its study ran, expected the file as it was: run the same command again, it"
            " goes on where it stopped"
        )
    _module_of(origin.path, origin.module, source)


@functools.cache
def _module_of(path: Path, name: str, source: bytes) -> ModuleType:
    with (
        contextlib.redirect_stdout(sys.stderr),  # standard output may be one JSON document
        hidden_arguments(str(path)),
        one_sentence(path.name, path, ": correct it, and run the same command again", runner=__file__),
    ):
        try:
            return import_file(path, name, source)
        except UserError as error:  # a spec or a rule that refuses its values
            lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
            raise UserError(f"{path.name}, line {lines[-1]}: {error}") from error


@contextlib.contextmanager
def explained(study: Study) -> Iterator[None]:
    """Let the functions of a user's own study fail with one sentence that names the line; ours are not expected to fail."""
    if study.origin is None:
        yield
        return
    with one_sentence(study.name, study.origin.path, ": correct it, no run is lost", runner=__file__):
        yield


def _check(study: Study, reference: str) -> None:
    """Refuse what could not be stored, run or decided.

    Raises:
        UserError: A part of the study cannot be used.
    """
    if study.name in STUDIES:
        raise UserError(
            f"the study {reference} is named {study.name!r}, which is one of ours: give it another name, and the runs that it"
            " shares with ours are still found"
        )
    if not isinstance(study.name, str) or re.fullmatch(NAME, study.name) is None:
        raise UserError(
            f"the study {reference} is named {study.name!r}, expected small letters, digits and single dashes, such as"
            " 'my-study': change its name"
        )
    if "laptop" not in study.presets or not set(study.presets) <= set(PRESETS):
        raise UserError(
            f"{study.name} has the presets {', '.join(map(str, study.presets)) or '(none)'}, expected laptop and any of"
            f" {', '.join(name for name in PRESETS if name != 'laptop')}: rename or add them"
        )
    for name, preset in study.presets.items():
        _check_preset(f"the preset {name} of {study.name}", preset)


def _check_preset(what: str, preset: Preset) -> None:
    places = [(arm.key, arm.size) for arm in preset.arms]
    twice = sorted({place for place in places if places.count(place) > 1})
    if twice:
        raise UserError(
            f"{what} has two arms of the key {twice[0][0]!r} at size {twice[0][1]}, expected each once: rename one of them"
        )
    if preset.main_size not in {arm.size for arm in preset.arms}:
        raise UserError(
            f"{what} has no arm of its main size {preset.main_size}, expected at least one: change main_size, or add arms"
        )
    if preset.num_seeds < MIN_SEEDS:
        raise UserError(
            f"{what} has num_seeds {preset.num_seeds}, expected at least {MIN_SEEDS}, which an interval needs: raise num_seeds"
        )
