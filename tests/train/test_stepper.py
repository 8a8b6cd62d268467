"""The Stepper: every batch is one step, whoever delivers it."""

import itertools

import torch

from pipeline.data.loader import Batch
from pipeline.train.stepper import Stepper


class Loader:
    """Five batches an epoch, of which this process has four; a batch tells its epoch and number."""

    def __len__(self):
        return 5

    def epoch(self, epoch, start=0):
        for number in range(start, 4):
            yield Batch(torch.tensor(epoch), torch.tensor(number))


def taken(*arguments):
    """The (epoch, number) of each batch that was worked on after each step."""
    seen = []
    stepper = Stepper(Loader(), lambda batch: seen.append(tuple(map(int, batch))), list)
    return [list(seen) for waited in stepper.epoch(*arguments) if waited >= 0]


def test_a_step_is_taken_before_it_is_counted():
    done = taken(3)
    assert [len(steps) for steps in done] == [1, 2, 3, 4, 4]  # one batch less than other processes
    assert done[-1] == [(3, 0), (3, 1), (3, 2), (3, 3)]


def test_an_epoch_begins_where_it_is_asked_to():
    assert taken(2, 2)[-1] == [(2, 2), (2, 3)]
    assert taken(2, 5) == []


def test_no_step_is_taken_before_it_is_asked_for():
    seen = []
    stepper = Stepper(Loader(), seen.append, list)
    assert len(list(itertools.islice(stepper.epoch(0), 2))) == len(seen) == 2
    stepper.look_ahead(1)
    stepper.reset()
    assert len(seen) == 2
