# Reports: the matrices and experiments that tables and figures are made of.

REPORTS = {
    name: (
        [*experiments.matrix_experiments(CONFIG, name)],
        experiments.matrix_seeds(CONFIG, name),
    )
    for name in CONFIG["matrices"]
}


# Rules whose names look like those of experiments.
RULE_TARGETS = {"generate_shapes", "imagenet_weights", "train_base", "train_step"}
# Names on the command line that spell out a default: voc_15-1_mib_mib is voc_15-1_mib.
ALIASES = {}


def add_experiment_reports():
    """Make a report of every configured experiment, and of those that the command line names."""
    for name, experiment in experiments.configured_experiments(CONFIG).items():
        REPORTS[name] = ([experiment], CONFIG["seeds"])
    # `snakemake --list` has no targets.
    for target in getattr(workflow.dag_settings, "targets", []):
        target = str(target)
        # What has a slash is a file; what has no underscore is a rule such as `paper`.
        if (
            target in REPORTS
            or "/" in target
            or "_" not in target
            or target in RULE_TARGETS
        ):
            continue
        try:
            experiment = experiments.parse_experiment(CONFIG, target)
        except CissError as error:
            stop(error)
        REPORTS[experiment.name] = ([experiment], CONFIG["seeds"])
        ALIASES[target] = experiment.name


add_experiment_reports()


def report_files(report):
    """The tables and figures of a report."""
    chosen, _ = REPORTS[report]
    folder = at(paths.REPORT.format(report=report))
    tracks = dict.fromkeys((e.dataset, e.scenario.name) for e in chosen)
    return [
        f"{folder}/table.md",
        *[
            f"{folder}/figures/{d}_{s}/{paths.SCENARIO_FIGURES[0]}.pdf"
            for d, s in tracks
        ],
        *[
            f"{folder}/figures/{e.dataset}_{e.scenario.name}/classes_{e.run}.pdf"
            for e in chosen
        ],
    ]


def report_experiments(wildcards):
    chosen, _ = REPORTS[wildcards.report]
    track = wildcards.get("scenario")
    return [
        e
        for e in chosen
        if track is None or (e.dataset, e.scenario.name) == (wildcards.dataset, track)
    ]
