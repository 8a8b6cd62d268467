"""Where the images of a data set lie: in files of their own, or as members of tar archives."""

import abc
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from pipeline.data.draws import Ints
from pipeline.data.image import bad_image, decoded
from pipeline.run.files import open_file


class Store(abc.ABC):
    """Gives the images of the data set at ``root`` by their places in the list of all, and their
    names. It is small where it is pickled, for processes that load.

    ``has_paths`` says that each lies at its name under ``root``.
    """

    has_paths = False

    def __init__(self, root: Path) -> None:
        self.root = str(root)

    @abc.abstractmethod
    def open(self, index: int, name: str) -> BinaryIO:
        """The bytes of an image's file; raises OSError where they cannot be had."""

    def rgb(self, index: int, name: str) -> Image.Image:
        """An image as RGB, as ``open_rgb`` gives it. Raises UserError that names it."""
        return decoded(partial(self.open, index, name), partial(bad_image, self.root, name))


class Files(Store):
    """Images that are files of their own."""

    has_paths = True

    def open(self, index: int, name: str) -> BinaryIO:
        return open_file(f"{self.root}/{name}")


class Archives(Store):
    """Images that are members of tar archives.

    ``places``: for each image the number of its archive among ``archives``, and how many bytes it
    has from which one on, (N, 3).
    """

    def __init__(self, root: Path, archives: Sequence[Path], places: Ints) -> None:
        super().__init__(root)
        self.archives, self.places = [*map(str, archives)], places

    def open(self, index: int, name: str) -> BinaryIO:
        archive, start, size = self.places[index].tolist()
        with open_file(self.archives[archive]) as file:
            file.seek(start)
            content = file.read(size)
        if len(content) < size:
            raise OSError(f"{self.archives[archive]} has become shorter")
        return io.BytesIO(content)
