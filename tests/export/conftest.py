"""The instruction sets of the engine."""

from tests.native.conftest import instructions, known_sets  # noqa: F401
