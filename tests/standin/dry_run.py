"""A training step without a GPU, counted; from the project's root:

    .venv/bin/python -m tests.standin.dry_run CONFIG [key=value ...] [--captured] [--ranks 2]

prints one line of JSON. ``launches`` counts what a step queues on streams, by name in ``kernels``;
for a captured step that is its replay, and ``nodes`` counts what its graph holds, by name in
``graph``. CONFIG ``torchvision`` is that library's plain resnet18 in fp16. ``--origins`` adds the
operators and lines that the launches come from; with ``--table``, people can read it all.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests import PATIENCE, ROOT
from tests.standin import build

Result = dict[str, Any]


def case(
    config: str, *overrides: str, captured: bool = False, origins: bool = False
) -> dict[str, Any]:
    """One step to look at, as plain data."""
    asked = {"config": config, "overrides": list(overrides)}
    return {**asked, "captured": captured, "origins": origins}


def dry_run(cases: list[dict[str, Any]], ranks: int = 1) -> list[list[Result]]:
    """What every rank found for each of ``cases``; all run in the same ``ranks`` processes.

    Raises RuntimeError with the words of the processes that failed.
    """
    command = [sys.executable, "-m", "tests.standin.worker", json.dumps(cases)]
    with tempfile.TemporaryDirectory() as folder:
        started = [_start(command, each, Path(folder)) for each in _environments(ranks)]
        try:
            codes = [process.wait(PATIENCE) for process in started]
        finally:
            for process in started:
                process.kill()
        said = [Path(folder, f"{rank}.out").read_text() for rank in range(ranks)]
        errors = [Path(folder, f"{rank}.err").read_text() for rank in range(ranks)]
    if any(codes):
        raise RuntimeError(f"a dry run ended with {codes}:\n" + "\n".join(errors))
    by_rank = [json.loads(output.splitlines()[-1]) for output in said]
    return [list(results) for results in zip(*by_rank, strict=True)]


def _start(command: list[str], environment: dict[str, str], folder: Path) -> subprocess.Popen:
    """Start one process, whose output goes to files: nobody reads pipes while others wait."""
    place = folder / environment["RANK"]
    with open(f"{place}.out", "w") as out, open(f"{place}.err", "w") as err:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err)


def _environments(ranks: int) -> list[dict[str, str]]:
    """What torchrun would set, for each rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    every = build.environment(ranks) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    every |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [every | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def table(result: Result) -> str:
    """The counts of ``result``, one a line."""
    lines = [f"{count:6} {name}" for name, count in result["kernels"].items()]
    lines += [f"{count:6} in the graph: {name}" for name, count in result["graph"].items()]
    lines += [f"{count:6} from {origin}" for origin, count in result["origins"].items()]
    for what in ("waits", "layout_copies", "strided_copies", "violations"):
        lines += [f"{what}: {result[what] or 'none'}"]
    lines += [
        f"{result['launches']} launches, {result['nodes']} in the graph, "
        f"{len(result['collectives'])} collectives, {result['cpu_seconds'] * 1e3:.1f} ms of the "
        f"host, at most {result['peak_bytes'] / 2**30:.2f} GiB"
    ]
    return "\n".join(lines)


def main() -> int:
    """The command; 1 where a rule was broken, 2 where nothing can run."""
    parser = argparse.ArgumentParser(description=__doc__.partition(";")[0])
    parser.add_argument("config", help="the name of a file in configs/, or torchvision")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--captured", action="store_true", help="as replays of a CUDA graph")
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=1, help="processes")
    parser.add_argument("--origins", action="store_true", help="and the lines they come from")
    parser.add_argument("--table", action="store_true", help="lines for people, no JSON")
    given = parser.parse_intermixed_args()
    if given.config != "torchvision" and not (ROOT / f"configs/{given.config}.yaml").is_file():
        parser.error(f"there is no configs/{given.config}.yaml")
    if reason := build.obstacle():
        print(f"error: {reason}", file=sys.stderr)
        return 2
    asked = case(given.config, *given.overrides, captured=given.captured, origins=given.origins)
    try:
        (results,) = dry_run([asked], given.ranks)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    first = results[0]
    first["alike"] = all(each["collectives"] == first["collectives"] for each in results)
    print(table(first) if given.table else json.dumps(first))
    is_clean = first["alike"] and not any(each["violations"] for each in results)
    return 0 if is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
