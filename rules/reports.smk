# Reports: the matrices and experiments that tables and figures are made of.

REPORTS = {
    name: (
        [*experiments.matrix_experiments(CONFIG, name)],
        experiments.matrix_seeds(CONFIG, name),
    )
    for name in CONFIG["matrices"]
} | {
    name: ([experiment], CONFIG["seeds"])
    for name, experiment in experiments.configured_experiments(CONFIG).items()
}


def requested_targets():
    """What the command line asks for by name; a job that Snakemake started has only files."""
    # Snakemake reads the targets after the Snakefile. Its own parser knows which words they are.
    called = Path(sys.argv[0]).name
    if not workflow.is_main_process or called not in ("snakemake", "__main__.py"):
        return []
    known, _ = snakemake.cli.get_argument_parser().parse_known_args(sys.argv[1:])
    return [name for name in known.targets if Path(name).stem == name]


def add_requested_experiments():
    """Make reports of the experiments that the command line names beside the configured ones.

    Returns other spellings: voc_15-1_mib_mib names the default, voc_15-1_mib.
    """
    other_names = {}
    rule_names = {rule.name for rule in workflow.rules}
    for target in requested_targets():
        if target in REPORTS or target in rule_names or Path(target).exists():
            continue
        try:
            experiment = experiments.parse_experiment(CONFIG, target)
        except CissError as error:
            stop(error)
        REPORTS[experiment.name] = ([experiment], CONFIG["seeds"])
        if target != experiment.name:
            other_names[target] = experiment.name
    return other_names


def figures_folder(report, experiment):
    """Where the figures of an experiment's scenario lie."""
    scenario = experiment.scenario.name
    names = {"report": report, "dataset": experiment.dataset, "scenario": scenario}
    return at(paths.FIGURES.format(**names))


def shares_of(chosen):
    """Shares of transferred channels, where the experiments of a scenario differ in them."""
    first = chosen[0]
    model = settings_at(first.dataset, first.scenario.name)["model"]
    return experiments.transfer_shares(chosen, model["head_channels"])


def shares_figures(chosen, report):
    """Figures of the scenarios whose experiments differ in the share of transferred channels."""
    by_scenario = {}
    for e in chosen:
        by_scenario.setdefault(figures_folder(report, e), []).append(e)
    return [
        f"{folder}/{paths.SHARES_FIGURE}.pdf"
        for folder, members in by_scenario.items()
        if shares_of(members)
    ]


def model_figures(chosen, report):
    """Figures that look at the models of each run and at images."""
    files = []
    for e in chosen:
        folder = figures_folder(report, e)
        files.append(f"{folder}/{paths.PREDICTIONS_FIGURE.format(run=e.run)}.pdf")
        if e.needs_attribution:
            files.append(f"{folder}/{paths.ATTRIBUTION_FIGURE.format(run=e.run)}.pdf")
    return files


def tables_and_figures(report):
    """What a report is made of, but for the pages that are about all of it."""
    chosen, _ = REPORTS[report]
    # Offline there are no steps to draw.
    by_step = dict.fromkeys(
        figures_folder(report, e) for e in chosen if e.scenario.n_steps > 1
    )
    return [
        at(f"{paths.REPORT.format(report=report)}/table.md"),
        *[f"{folder}/{paths.SCENARIO_FIGURES[0]}.pdf" for folder in by_step],
        *shares_figures(chosen, report),
        *[f"{figures_folder(report, e)}/classes_{e.run}.pdf" for e in chosen],
        *model_figures(chosen, report),
    ]


def report_files(report):
    """All files of a report."""
    return [
        *tables_and_figures(report),
        at(f"{paths.REPORT.format(report=report)}/tables.html"),
    ]


def report_experiments(wildcards):
    chosen, _ = REPORTS[wildcards.report]
    track = wildcards.get("scenario")
    return [
        e
        for e in chosen
        if track is None or (e.dataset, e.scenario.name) == (wildcards.dataset, track)
    ]
