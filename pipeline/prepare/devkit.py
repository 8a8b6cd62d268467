"""What ImageNet's development kit tells: the classes and their words, and those of the validation
images.

It holds them as the labels of ``torchvision.datasets.ImageNet`` come from it: the classes without
children in ``data/meta.mat``, and a number of these for each image in a text file.
"""

import gzip
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.run.errors import UserError
from pipeline.run.files import open_file

FOLDER = "ILSVRC2012_devkit_t12/data"
META, TRUTH = f"{FOLDER}/meta.mat", f"{FOLDER}/ILSVRC2012_validation_ground_truth.txt"
LARGEST = 2**26  # bytes of the unzipped archive


@dataclass(frozen=True)
class Devkit:
    """The classes of a data set, and of its validation images."""

    words: dict[str, str]  # what the class of each WordNet ID is called
    truth: list[str]  # the WordNet ID of each validation image; that of the first comes first


def read_devkit(path: Path) -> Devkit:
    """Read the archive ``path``. Raises UserError where it is another file, or damaged; OSError
    where it cannot be read."""
    import scipy.io  # here, as only this needs it

    try:
        with tarfile.open(fileobj=_unzipped(path)) as archive:
            meta = scipy.io.loadmat(io.BytesIO(_content(archive, META)), squeeze_me=True)
            truth = _content(archive, TRUTH).split()
        leaves = [each for each in meta["synsets"] if each["num_children"] == 0]
        ids = {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in leaves}
        words = {str(each["WNID"]): str(each["words"]) for each in leaves}
        return Devkit(words, [ids[int(number)] for number in truth])
    except OSError as error:
        if error.errno is not None:
            raise
        raise _refused(path, error) from None
    except Exception as error:  # a damaged file raises almost anything
        raise _refused(path, error) from None


def _refused(path: Path, error: Exception) -> UserError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return UserError(
        f"{path} is not the development kit of ILSVRC2012, tasks 1 and 2, or is damaged "
        f"({reason}); fetch it again from image-net.org"
    )


def _unzipped(path: Path) -> io.BytesIO:
    """The archive, read to its end, where its checksum stands."""
    with open_file(path) as file, gzip.open(file) as unzipped:
        content = unzipped.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"larger than {LARGEST} bytes")
    return io.BytesIO(content)


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is no file")
    return file.read()
