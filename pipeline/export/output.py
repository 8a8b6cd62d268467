"""What an export leaves: files that are written whole or not at all."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.run.errors import UserError
from pipeline.run.files import replacing

Files = dict[str, bytes]  # their content, by their endings, or by their names in a folder


@dataclass(frozen=True)
class Options:
    """How a network is exported: ``real``, as in ``shrink``; ``weights`` (bits or float) and
    ``opset`` of ONNX, None for the one that suits."""

    real: str = "float32"
    weights: str = "bits"
    opset: int | None = None


def write(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, whose folder is made where there is none.

    Raises UserError where that fails; what was there before stays then.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; make room or name another place for it"
        ) from None
