"""What the machine code of a kernel does to memory, and how many instructions it takes for that."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

# Loads and stores of global memory, those that go to shared memory directly among them.
ACCESS = re.compile(r"(?P<store>STG)|(?P<load>LDG|LDGSTS)")


class Code(NamedTuple):
    """What one thread of a kernel executes.

    ``loads`` and ``stores`` count accesses to global memory in this order of widths: 8, 16, 32, 64
    and 128 bits.
    """

    loads: list[int]
    stores: list[int]
    local: int  # accesses to memory of the thread's own, in which spilled registers lie
    instructions: int
    # Of the loop that writes maps, else of the one that loads most in vectors, or 0; of two the
    # longer one.
    loop_instructions: int
    loop_bytes: int  # which each pass of that loop loads in vectors


WIDTHS = (8, 16, 32, 64, 128)
VECTOR = 64  # bits from which on an access counts as one of a vector


def read_code(cubin: bytes) -> Code:
    """The Code of a kernel that Triton compiled."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.nvdisasm.path, "-c", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return parse(text)


def parse(text: str) -> Code:
    """The Code in what ``nvdisasm -c`` prints."""
    instructions, labels = [], {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        found = re.match(r"\s*/\*\w{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z].*?)\s*;", line)
        if found and not found[1].startswith("NOP"):  # padding
            instructions.append(found[1])
    bodies = list(_loops(instructions, labels))
    body = max(bodies, key=lambda body: (_writes(body), _loaded(body), len(body)), default=[])
    if not _loaded(body):
        body = []
    return Code(
        _by_width(instructions, "load"),
        _by_width(instructions, "store"),
        sum(each.startswith(("LDL", "STL")) for each in instructions),
        len(instructions),
        len(body),
        _loaded(body),
    )


def _loops(instructions: list[str], labels: dict[str, int]) -> Iterator[list[str]]:
    """The instructions between each branch backward and where it leads."""
    for place, each in enumerate(instructions):
        target = re.match(r"BRA\b.*?(\.L_\w+)", each)
        if target and labels.get(target[1], place) < place:
            yield instructions[labels[target[1]] : place + 1]


def _by_width(instructions: list[str], kind: str) -> list[int]:
    widths = [_width(each) for each in instructions if _is(each, kind)]
    return [widths.count(width) for width in WIDTHS]


def _is(instruction: str, kind: str) -> bool:
    found = ACCESS.match(instruction)
    return bool(found and found[kind])


def _width(instruction: str) -> int:
    """In bits; 32 where the name of the instruction does not say."""
    found = re.search(r"\.(?:[US](8|16)|(64|128))\b", instruction.split()[0])
    return int(found[1] or found[2]) if found else 32


def _writes(body: list[str]) -> bool:
    """Whether a loop stores vectors."""
    counts = zip(_by_width(body, "store"), WIDTHS, strict=True)
    return any(n and width >= VECTOR for n, width in counts)


def _loaded(instructions: list[str]) -> int:
    """The bytes that are loaded in vectors."""
    widths = [_width(each) for each in instructions if _is(each, "load")]
    return sum(width for width in widths if width >= VECTOR) // 8
