"""Train with several estimators, settings and seeds under one recipe, and compare them.

A study is a YAML file: the recipe, and what is varied (docs/studies.md). Each training is a run of
its own in the study's folder, runs/<study>/, beside tables and pictures, which are drawn again
after each. Started again, it goes on: finished trainings are kept. If some fail, the others are
done, and it exits with the code that those that failed have in common, or with 1.
"""

from collections.abc import Sequence

from launch.command import Parser, answer, command, find_config, whole

STUDIES = "configs/studies"
PARSER = Parser(
    "study",
    "STUDY [key=value ...] [--jobs N] [--dry-run] [--report]",
    __doc__ or "",
    (
        "estimators data.path=/path/to/cifar10",
        "estimators data.path=/path/to/cifar10 --jobs 4",
        "my_study.yaml --report",
    ),
)
PARSER.add_argument("study", metavar="STUDY", help=f"a YAML file, or the name of one in {STUDIES}/")
PARSER.add_overrides()
PARSER.add_argument(
    "--jobs", metavar="N", type=whole(1, 64), default=1,
    help="trainings at a time (%(default)s), which share the processor's cores; each has a GPU of "
    "its own as far as there are some",
)  # fmt: skip
PARSER.add_argument("--dry-run", action="store_true", help="only list the trainings")
PARSER.add_argument("--report", action="store_true", help="only draw tables and pictures again")


def main(arguments: Sequence[str]) -> None:
    """Do the study that ``arguments`` name."""
    options = PARSER.parse(arguments)
    from pipeline.report.study import write_report
    from pipeline.report.study_table import listing
    from pipeline.run.alone import alone_in
    from pipeline.run.console import start_console, start_file
    from pipeline.run.study import another, check_folder, read_study
    from pipeline.run.trials import exit_code, run_trials, tell

    path = find_config(options.study, STUDIES)
    study = read_study(path, options.overrides, find_config)
    start_console()
    if options.dry_run:
        return answer(listing(study))
    if options.report:
        return answer(write_report(study))
    check_folder(study)
    write_report(study)  # first: it says whether the folder can be written
    with alone_in(study.folder, f"stop it, or {another(study)}"):
        start_file(study.folder / "log.txt")
        failures = run_trials(study, options.jobs, lambda: write_report(study))
        answer(write_report(study))
    tell(failures)
    if failures:
        raise SystemExit(exit_code(failures))


if __name__ == "__main__":
    command(main)
