"""The file of a study: which trainings there are to be, under which recipe.

    config: cifar10_resnet20                 the recipe: the name of a config, or a file
    overrides: {train.epochs: 10}            what is other than in the recipe, in every training
    seeds: [1, 2, 3]                         every training is done once with each; unset: one seed
    runs:                                    each entry is a grid: all combinations of its values
      - estimator.name: [reste, ste]
      - {estimator.name: reste, estimator.o_end: [1, 2, 5]}

It is plain YAML. What a key's value must be is left to the config.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.run import plain_yaml
from pipeline.run.config_types import read_integer
from pipeline.run.errors import UserError

MOST_TRIALS = 1000
OWN_KEYS = ("seed", "run.resume")  # a study decides about them itself


class Plan(NamedTuple):
    """What the file of a study holds. Values are text as it was written, or None for a null."""

    config: str
    runs: list[dict[str, Any]]
    overrides: dict[str, Any]
    seeds: list[Any]

    def points(self) -> Iterator[dict[str, Any]]:
        """The settings of each trial but for its seed."""
        for run in self.runs:
            values = [value if isinstance(value, list) else [value] for value in run.values()]
            for point in itertools.product(*values):
                yield dict(zip(run, point, strict=True))

    def size(self) -> int:
        """How many trials there are with those that stand twice."""
        lengths = ([len(v) for v in run.values() if isinstance(v, list)] for run in self.runs)
        return max(1, len(self.seeds)) * sum(map(math.prod, lengths))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_plain, value))


def _is_grid(value: Any) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    return all(_is_plain(each) or _is_list(each) for each in value.values())


def _are_seeds(value: Any) -> bool:
    return _is_list(value) and all(isinstance(read_integer(each), int) for each in value)


class _Field(NamedTuple):
    """A field of a study's file: whether a value is right, and how a right one is written."""

    is_right: Callable[[Any], bool]
    example: str


FIELDS = {
    "config": _Field(lambda value: isinstance(value, str), "config: cifar10_resnet20"),
    "overrides": _Field(
        lambda value: isinstance(value, dict) and all(map(_is_plain, value.values())),
        "overrides: {train.epochs: 10}",
    ),
    "seeds": _Field(_are_seeds, "seeds: [1, 2, 3]"),
    "runs": _Field(
        lambda value: isinstance(value, list) and bool(value) and all(map(_is_grid, value)),
        "runs: [{estimator.name: [reste, ste]}]",
    ),
}


def read_plan(path: Path) -> Plan:
    """What the file ``path`` holds; raises UserError where it is not as it should be."""
    values = {"overrides": {}, **plain_yaml.load(path)}
    names = ", ".join(FIELDS)
    for name in values.keys() - FIELDS.keys():
        raise UserError(f"study {path}: {name} is no part of a study; its parts are {names}")
    for name, field in FIELDS.items():
        is_left_out = name == "seeds" and name not in values
        if not is_left_out and not field.is_right(values.get(name)):
            what = "is not as it should be" if name in values else "is missing"
            raise UserError(f"study {path}: {name} {what}; write it as in {field.example}")
    plan = Plan(**{"seeds": [], **values})
    if plan.size() > MOST_TRIALS:
        what = f"study {path}: {plan.size()} trials"
        raise UserError(f"{what} are more than {MOST_TRIALS}; leave values out of runs or seeds")
    return plan


def check_keys(plan: Plan, words: Sequence[str], path: Path) -> None:
    """Raise UserError where ``plan``, which was read from ``path``, or ``words``, the further
    overrides, give a key at a place where it cannot stand."""
    given = {word.partition("=")[0]: word for word in words}
    varied = {key for run in plan.runs for key in run}
    own = [key for key in (*plan.overrides, *given, *varied) if key in OWN_KEYS]
    own += [key for key in varied if key.startswith("run.")]
    if "seed" in own:
        raise UserError(
            f"study {path}: seed stands among the keys; write {FIELDS['seeds'].example}"
        )
    if own:
        raise UserError(f"study {path}: {own[0]} is decided by the study; leave it out")
    for key in given.keys() & varied:
        raise UserError(f"study {path}: its runs give {key} values already; leave {given[key]} out")
