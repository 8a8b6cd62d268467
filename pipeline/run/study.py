"""A study: trainings under one recipe that differ in a few settings. They are called trials.

Two entries of a study's file may describe the same trial, be it that a value is the recipe's own or
that the estimator has no such option: it is done once.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.run import plain_yaml
from pipeline.run.commands import command_line
from pipeline.run.config import Config, flatten, load_config, make_config, to_dict
from pipeline.run.config_keys import shown
from pipeline.run.errors import UserError
from pipeline.run.files import free_name
from pipeline.run.plan import check_keys, read_plan
from pipeline.run.problems import Problems
from pipeline.run.resume import differences, recorded_epochs


@dataclass(frozen=True)
class Trial:
    """One training of a study.

    ``settings``: the keys that matter in it and have another value than in the recipe, with those
    values in words; the estimator's name and the seed are left out. ``words``: what the command
    ``train`` takes for it.
    """

    settings: Mapping[str, str]
    config: Config
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its folder in that of the study."""
        return str(self.config.run.name)

    @property
    def epochs_done(self) -> int:
        """How many epochs its records tell of."""
        return max((record.get("epoch", -1) + 1 for record in self.records()), default=0)

    @property
    def is_finished(self) -> bool:
        """Whether all of its epochs are recorded."""
        return self.epochs_done == self.config.train.epochs

    def records(self) -> list[dict[str, Any]]:
        """The records of its finished epochs, see ``recorded_epochs``."""
        return recorded_epochs(self.config.run_folder)


@dataclass(frozen=True)
class Study:
    """The folder of a study, which holds the folders of its trials, and the trials in the order in
    which they are to be done: all of one seed before those of the next."""

    folder: Path
    trials: tuple[Trial, ...]

    @property
    def open(self) -> list[Trial]:
        """The trials that are not finished."""
        return [trial for trial in self.trials if not trial.is_finished]


def read_study(path: Path, words: Sequence[str], find: Callable[[str], Path]) -> Study:
    """The study in the YAML file ``path``, with ``words`` as further overrides of all trials.

    ``find`` gives the file of a config's name. The study's folder is that of a run by the name of
    the file. Raises UserError where the file, or the config of any trial, is not as it should be.
    """
    plan = read_plan(path)
    overrides = [*_pairs(plan.overrides), *words]
    check_keys(plan, words, path)
    base = make_config(plain_yaml.load(find(plan.config)), overrides, name=path.stem)
    trials: dict[str, Trial] = {}
    problems = Problems(local=True)
    for seed, point in itertools.product(plan.seeds or [base.seed], plan.points()):
        with problems.noted():
            trial = _trial(base, {**point, "seed": seed}, (plan.config, *overrides))
            trials.setdefault(trial.name, trial)
    problems.raise_all()
    return Study(base.run_folder, tuple(trials.values()))


def _trial(base: Config, settings: Mapping[str, Any], words: Sequence[str]) -> Trial:
    """The trial with ``settings`` over ``base``, which is what ``words`` say."""
    own = _pairs(settings)
    config = make_config(to_dict(base), own)
    settings_in_words = _settings(base, config)
    told = {**settings_in_words, "seed": str(config.seed)}
    name = quote(in_words(config.estimator.name, told, "-", ""), safe="+")
    place = {"run.dir": str(base.run_folder), "run.name": name}
    return Trial(settings_in_words, config.changed(place), (*words, *own, *_pairs(place)))


def _settings(base: Config, config: Config) -> dict[str, str]:
    """The ``settings`` of a trial with ``config`` whose recipe is ``base``."""
    options = [f"estimator.{name}" for name in config.estimator_options]
    usual = flatten(base)
    return {
        key: written(value)
        for key, value in flatten(config).items()
        if value != usual[key]
        and key != "seed"
        and (not key.startswith("estimator.") or key in options)
    }


def written(value: object) -> str:
    """A value of a config as a person writes it."""
    if value is None or isinstance(value, bool):
        return shown(value)
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def in_words(
    estimator: str, settings: Mapping[str, str], between: str = ", ", gap: str = " "
) -> str:
    """The estimator and the settings: of each the last word of its key, a ``gap``, its value."""
    parts = [f"{key.rpartition('.')[2]}{gap}{value}" for key, value in settings.items()]
    return between.join([estimator, *parts])


def another(study: Study) -> str:
    """The remedy where the folder of ``study`` cannot be used."""
    return f"set run.name={free_name(study.folder)} to begin another study"


def check_folder(study: Study) -> None:
    """Raise UserError where what lies in the study's folder is not of this study."""
    remedy = another(study)
    if (study.folder / "metrics.jsonl").exists():
        raise UserError(f"{study.folder} is the folder of a run; {remedy}")
    for trial in study.trials:
        if changed := _changes(trial):
            what = f"{trial.config.run_folder} was begun with other settings ({changed})"
            raise UserError(f"{what}; take these back, or {remedy}")


def _changes(trial: Trial) -> str:
    """How the settings of ``trial`` differ from those that its run began with."""
    path = trial.config.run_folder / "config.yaml"
    try:
        then = load_config(path)
    except UserError:  # there is none, or it is of another version: the training knows what to do
        return ""
    changed = differences(trial.config, then, is_settled=False)
    return ", ".join(f"{key}: {old} -> {new}" for key, (old, new) in changed.items())


def command_of(trial: Trial) -> str:
    """The command that does ``trial`` alone."""
    return command_line("train", *trial.words)


def _pairs(values: Mapping[str, Any]) -> list[str]:
    """The overrides ``key=value`` of ``values``."""
    return [f"{key}={'null' if value is None else value}" for key, value in values.items()]
