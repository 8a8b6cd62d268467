"""Train a network as a config says, or go on with a run that was interrupted.

The run goes to <run.dir>/<run.name>, which is runs/ and the config's name if they are not set. On
several GPUs: make imagenet-r18 GPUS=8.
"""

from collections.abc import Sequence

from launch.command import Parser, command, find_config, whole

PARSER = Parser(
    "train",
    "CONFIG [key=value ...] [--check[=N]]",
    __doc__ or "",
    (
        "quickstart",
        "cifar10_resnet20 data.path=/path/to/cifar10",
        "imagenet_resnet18 data.path=/path/to/imagenet run.name=short train.epochs=100",
        "imagenet_resnet18 data.path=/path/to/imagenet --check=8",
    ),
)
PARSER.add_config()
PARSER.add_argument(
    "--check", nargs="?", const=1, default=0, type=whole(1), metavar="N",
    help="only look for mistakes in the config and the data, as N processes (1) would meet them",
)  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    """Train as the config and the overrides in ``arguments`` say, or go on doing so."""
    options = PARSER.parse(arguments)
    from pipeline.report.plots import draw_run
    from pipeline.report.runs import METRICS
    from pipeline.run import processes, rendezvous
    from pipeline.run.config import load_config
    from pipeline.run.errors import Diverged, Interrupted
    from pipeline.run.sweep import run_name
    from pipeline.train.session import summarise, train

    path = find_config(options.config)
    config = load_config(path, options.overrides, name=run_name(path.stem))
    try:
        outcome = train(config, options.check, (options.config, *options.overrides))
    except (Diverged, Interrupted):
        # Of several processes, torchrun ends the others as soon as one has ended.
        if processes.size() == 1 and (config.run_folder / METRICS).exists():
            draw_run(config.run_folder)
        raise
    if outcome:
        if processes.is_main():
            draw_run(outcome.config.run_folder)
        summarise(outcome)
    rendezvous.stop()


if __name__ == "__main__":
    command(main)
