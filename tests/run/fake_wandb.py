"""What stands in for wandb: its package, and a reader of its files."""

import json
import sys
from types import SimpleNamespace


class Package:
    """Notes what is called. ``fails`` names what raises, and in which mode; ``last_step`` is that
    of the history on the server, from 0."""

    def __init__(self):
        self.fails, self.calls, self.last_step = (), [], -1

    @classmethod
    def install(cls, monkeypatch):
        """Let ``import wandb`` find a new one."""
        package = cls()
        monkeypatch.setitem(sys.modules, "wandb", package)
        return package

    def init(self, **options):
        self._do("init", **options)
        return SimpleNamespace(
            id=options.get("id"),
            entity="me",
            project=options.get("project"),
            url="https://wandb/me/reste/runs/mine",
            dir=f"{options['dir']}/wandb/offline-run-1/files",
            define_metric=lambda name, **options: self._do("define_metric", name=name, **options),
            log=lambda numbers: self._do("log", numbers=numbers),
            alert=lambda title, text: self._do("alert", title=title, text=text),
            mark_preempting=lambda: self._do("mark_preempting"),
            log_artifact=lambda artifact: self._do("log_artifact", files=artifact.files),
            finish=lambda exit_code: self._do("finish", exit_code=exit_code),
        )

    def teardown(self):
        self._do("teardown")

    def Artifact(self, name, type):
        files: list = []
        return SimpleNamespace(files=files, add_file=files.append)

    def Histogram(self, np_histogram):
        return tuple(each.tolist() for each in np_histogram)

    def Api(self):
        return SimpleNamespace(run=lambda path: SimpleNamespace(lastHistoryStep=self.last_step))

    def _do(self, name, /, **what):
        self.calls.append((name, what))
        if name in self.fails or f"{name} {what.get('mode')}" in self.fails:
            raise RuntimeError(f"no {name} today\nsecond line")

    def named(self, name):
        return [what for each, what in self.calls if each == name]


def transactions(path):
    """The records of a .wandb file: 7 bytes of header, then a LevelDB log in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, parts = Record.FromString(parts), b""
            yield record


def history(path):
    """The rows of numbers in a .wandb file, in their order."""
    return [
        {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in each.history.item}
        for each in transactions(path)
        if each.WhichOneof("record_type") == "history"
    ]
