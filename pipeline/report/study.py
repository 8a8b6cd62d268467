"""The report of a study: its table and its pictures, written into its folder."""

from collections.abc import Sequence
from functools import partial

from pipeline.report.pictures import png
from pipeline.report.study_groups import Group, groups
from pipeline.report.study_pictures import PICTURES
from pipeline.report.study_table import comma_separated, in_markdown, plain
from pipeline.run.console import logger
from pipeline.run.errors import first_line
from pipeline.run.files import write_atomically
from pipeline.run.study import Study


def write_report(study: Study) -> str:
    """Write the tables and the pictures of ``study`` into its folder; returns the table and where
    the files are, in lines for a terminal."""
    found = groups(study)
    files = {"table.md": in_markdown(found).encode(), "table.csv": comma_separated(found).encode()}
    files |= draw(found)
    for name, content in files.items():
        write_atomically(study.folder / name, content)
    return "\n".join([plain(found), "", f"{study.folder}: {', '.join(files)}"])


def draw(found: Sequence[Group]) -> dict[str, bytes]:
    """The pictures by the names of their files. Whatever fails is one warning: a picture is no
    reason to end a study."""
    files = {}
    try:
        for name, (choose, draw_into, height) in PICTURES.items():
            if chosen := choose(found):
                files[name] = png(partial(draw_into, chosen), height(chosen))
    except ImportError:
        logger.warning("no pictures of the study: matplotlib is not installed")
    except Exception as error:  # matplotlib raises what it likes
        logger.warning("no pictures of the study: %s", first_line(error))
    return files
