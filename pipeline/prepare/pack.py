"""One shard while it is written: a tar archive in WebDataset's form, and its index."""

import tarfile
from typing import BinaryIO

from pipeline.data.shards import BLOCK, INDEX_HEAD


class Shard:
    """A tar archive that grows in ``file``, and the lines of its index."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size = file, 0
        self.lines: list[str] = []

    def add(self, number: int, ending: str, content: bytes, label: int) -> None:
        """Add an image of the tree by its number there."""
        parts = {ending: content, "cls": str(label).encode()}
        self.lines.append(" ".join(self._add(f"{number:08}", *part) for part in parts.items()))

    def _add(self, key: str, ending: str, content: bytes) -> str:
        member = tarfile.TarInfo(f"{key}.{ending}")
        member.size = len(content)
        whole = member.tobuf(tarfile.USTAR_FORMAT) + content
        self.file.write(whole + bytes(-len(whole) % BLOCK))
        start, self.size = self.size + BLOCK, self.size + len(whole) + -len(whole) % BLOCK
        return f"{ending} {start} {member.size} {member.name}"

    def end(self) -> None:
        """Write what ends an archive."""
        self.file.write(bytes(2 * BLOCK))

    def index(self) -> bytes:
        """The file for DALI's reader."""
        lines = [f"{INDEX_HEAD} {len(self.lines)}", *self.lines]
        return "".join(f"{line}\n" for line in lines).encode()
