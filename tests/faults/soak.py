"""Break runs for some minutes: ``python -m tests.faults.soak --minutes 30``."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.harness import Lab, Result, table, trial


def main() -> int:
    """0 if every run came out as if nothing had happened, else 1; failed ones are kept."""
    parser = argparse.ArgumentParser(prog="tests.faults.soak")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="soak_"))
    lab, results, began = Lab(root), [], time.monotonic()
    try:
        while time.monotonic() - began < 60 * options.minutes:
            results.append(trial(lab, options.seed + len(results)))
            print(_line(results[-1]), flush=True)
    except KeyboardInterrupt:
        print("interrupted")
    failed = [each for each in results if each.error]
    print(table(results))
    minutes = (time.monotonic() - began) / 60
    print(f"{len(results)} runs in {minutes:.0f} minutes, {len(failed)} of them broken; {root}")
    return bool(failed)


def _line(result: Result) -> str:
    what = ", ".join(result.faults) or "nothing struck in time"
    end = f"BROKEN: {result.error}" if result.error else "the same as undisturbed"
    return f"seed {result.seed}: {result.size} processes, {result.meeting}: {what}: {end}"


if __name__ == "__main__":
    sys.exit(main())
