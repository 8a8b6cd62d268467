"""The loop that times calls."""

import torch

from launch.bench import timing

CPU = torch.device("cpu")


def test_take_turns(monkeypatch):
    calls = []
    clock = iter(range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    providers = {name: lambda n=name: calls.append(n) for name in "ab"}
    seconds = timing.take_turns(providers, 3, CPU)
    assert calls == ["a", "b"] * 5
    assert {name: each.tolist() for name, each in seconds.items()} == {"a": [1] * 3, "b": [1] * 3}


def test_a_kernel_is_timed_call_by_call():
    calls = []
    seconds = timing.time_kernel(lambda: calls.append(1), CPU)
    assert len(calls) == 12 and seconds.shape == (10,) and seconds.dtype == torch.float64
