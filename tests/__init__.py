"""The tests, in the same rooms as what they test."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 900  # seconds that a test waits for a process: its machine may have other work, too
