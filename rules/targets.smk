# What can be asked for by name: every matrix and experiment of the configuration, and any other
# experiment that the command line names. `snakemake --list` shows them.

REPORTS = {
    name: ([*experiments.matrix_experiments(CONFIG, name)], experiments.matrix_seeds(CONFIG, name))
    for name in CONFIG["matrices"]
}


def add_experiment_reports():
    """Make a report of every configured experiment, and of those that the command line names."""
    for name, experiment in experiments.configured_experiments(CONFIG).items():
        REPORTS[name] = ([experiment], CONFIG["seeds"])
    # `snakemake --list` has no targets.
    for target in getattr(workflow.dag_settings, "targets", []):
        target = str(target)
        # What has a slash is a file; what has no underscore is a rule such as `paper`.
        if target in REPORTS or "/" in target or "_" not in target or target in RULE_TARGETS:
            continue
        try:
            experiment = experiments.parse_experiment(CONFIG, target)
        except CissError as error:
            stop(error)
        REPORTS[experiment.name] = ([experiment], CONFIG["seeds"])
        ALIASES[target] = experiment.name


# Rules whose names look like those of experiments.
RULE_TARGETS = {"generate_shapes", "imagenet_weights", "train_base", "train_step"}
# Names on the command line that spell out a default: voc_15-1_mib_mib is voc_15-1_mib.
ALIASES = {}
add_experiment_reports()


def report_files(report):
    """The tables and figures of a report."""
    chosen, _ = REPORTS[report]
    folder = at(paths.REPORT.format(report=report))
    tracks = dict.fromkeys((e.dataset, e.scenario.name) for e in chosen)
    return [
        f"{folder}/table.md",
        *[f"{folder}/figures/{d}_{s}/{paths.SCENARIO_FIGURES[0]}.pdf" for d, s in tracks],
        *[f"{folder}/figures/{e.dataset}_{e.scenario.name}/classes_{e.run}.pdf" for e in chosen],
    ]


rule paper:
    """Tables and figures of the matrices that `paper` lists in the configuration."""
    input:
        [report_files(name) for name in CONFIG.get("paper", [])],
    default_target: True


for target_name in [*REPORTS, *ALIASES]:

    rule:
        name:
            target_name
        input:
            report_files(ALIASES.get(target_name, target_name)),


for target_name, (chosen, seeds) in REPORTS.items():
    what = "experiment" if target_name not in CONFIG["matrices"] else f"{len(chosen)} experiments"
    workflow.get_rule(target_name).docstring = f"{what}, seeds {', '.join(map(str, seeds))}"
