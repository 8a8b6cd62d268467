"""What a training imports before its first step: nothing that takes seconds and that it can do
without."""

import subprocess
import sys

from tests import ROOT

SLOW = "torch._dynamo", "torchvision", "matplotlib", "wandb", "sklearn"
CODE = f"""
import sys
from pathlib import Path
import launch.train
import pipeline.data.open, pipeline.train.session
from tests.train.tiny import make_trainer

trainer = make_trainer(Path(sys.argv[1]))
trainer.run_epoch()
print(trainer.step, [name for name in {SLOW} if name in sys.modules])
"""


def test_steps_on_a_cpu_import_neither_the_compiler_nor_torchvision(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "6 []\n", done.stderr
