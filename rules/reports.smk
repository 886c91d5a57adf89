# Reports: the matrices and experiments that tables and figures are made of.


class Reports(dict):
    """Experiments and seeds of each report, by name."""

    def __missing__(self, name):
        # A job on a cluster reads its report off a path; the command line that named it is not its.
        self[name] = [experiments.parse_experiment(CONFIG, name)], CONFIG["seeds"]
        return self[name]


REPORTS = Reports()
REPORTS |= {
    name: (
        [*experiments.matrix_experiments(CONFIG, name)],
        experiments.matrix_seeds(CONFIG, name),
    )
    for name in CONFIG["matrices"]
} | {
    name: ([experiment], CONFIG["seeds"])
    for name, experiment in experiments.configured_experiments(CONFIG).items()
}
REPORTS |= {
    f"{name}{ciss.config.PARTIAL}": REPORTS[name] for name in CONFIG["matrices"]
}


def is_partial(report):
    """Whether a report takes what is there, and has a folder of its own for it."""
    return report.endswith(ciss.config.PARTIAL)


def experiment_named(report):
    """The experiment of a report that the configuration does not list; ends where there is none."""
    others = [rule.name for rule in workflow.rules if rule.docstring]
    try:
        return experiments.parse_experiment(
            CONFIG, report.removesuffix(ciss.config.PARTIAL), others
        )
    except CissError as error:
        stop(error)


def report_at(name):
    """Experiments and seeds of a report.

    A job on a cluster gets a rule and its wildcards, and does not know which experiments the
    command line named beside the configured ones.
    """
    return REPORTS.get(name) or ([experiment_named(name)], CONFIG["seeds"])


def report_confusions(report):
    """The confusion matrices that a report is made of."""
    chosen, seeds = report_at(report)
    return [
        artifact(paths.CONFUSION, experiment, seed, step)
        for experiment in chosen
        for seed in seeds
        for step in range(experiment.scenario.n_steps)
    ]


def all_targets():
    """What the command line asks for, files included: Snakemake reads it after the Snakefile."""
    known = command_line()
    return [] if known is None else list(known.targets)


def requested_targets():
    """What the command line asks for by name."""
    return [name for name in all_targets() if Path(name).stem == name]


def check_requested_files():
    """End with one line where no rule makes a file that is asked for, or it is of no experiment."""
    for target in all_targets():
        if Path(target).stem == target or Path(target).exists():
            continue
        if not Path(target).is_absolute():
            # So Snakemake reads it: ./results/x is results/x.
            target = os.path.relpath(target)
        makers = [rule for rule in workflow.rules if rule.is_producer(target)]
        if not makers:
            stop(no_such_file(target))
        try:
            check_place(makers[0].get_wildcards(target))
        except CissError as error:
            stop(f"nothing makes '{target}': {error}")


def check_place(place):
    """Raise ``CissError`` where the wildcards of a path name what the configuration does not have."""
    if "dataset" in place:
        dataset_at(place["dataset"])
    if "track" in place:
        track = place["track"]
        scenario = scenario_at(place["dataset"], track, is_base(track))
        if "step" in place:
            scenario.new_classes(int(place["step"]))


def no_such_file(target):
    """Say that no rule makes a file, which name is nearest, and how paths of results look."""
    files = {
        Path(str(file)).name
        for rule in workflow.rules
        for file in rule.output
        if "{" not in Path(str(file)).name
    }
    name = Path(target).name
    near = "" if name in files else ciss.names.nearest(name, files)
    hint = f" (did you mean {near}?)" if near else ""
    later = at(
        paths.MODEL.format(dataset="voc", track="15-1", run="mib", seed=1, step=1)
    )
    first = at(paths.MODEL.format(dataset="voc", track="15", run="ce", seed=1, step=0))
    return (
        f"no rule makes '{target}'{hint}; paths of results are such as {later}, and those of step "
        f"0, which experiments share, such as {first}"
    )


def add_requested_experiments():
    """Make reports of the experiments that the command line names beside the configured ones.

    Returns other spellings: voc_15-1_mib_mib names the default, voc_15-1_mib.
    """
    other_names = {}
    rule_names = {rule.name for rule in workflow.rules}
    for target in requested_targets():
        if target in REPORTS or target in rule_names or Path(target).exists():
            continue
        partial = ciss.config.PARTIAL if is_partial(target) else ""
        experiment = experiment_named(target)
        name = f"{experiment.name}{partial}"
        REPORTS[name] = ([experiment], CONFIG["seeds"])
        if target != name:
            other_names[target] = name
    return other_names


def say_where_reports_are():
    """End with the reports that were asked for by name, which are seldom the last job's."""
    if command_line() is None:
        return
    # Without a target it is the paper; a file is a target too.
    targets = requested_targets() if all_targets() else ["paper"]
    asked = [OTHER_NAMES.get(target, target) for target in targets]
    for name in asked:
        for report in CONFIG.get("paper", []) if name == "paper" else [name]:
            if report in REPORTS:
                folder = at(paths.REPORT.format(report=report))
                print(
                    f"Report: {folder}/table.md, tables.html, figures/", file=sys.stderr
                )


def check_lock():
    """Refuse a partial report that would take another Snakemake's lock away.

    Snakemake removes all locks of a folder when it ends; one started with --nolock leaves them.
    """
    partial = [name for name in requested_targets() if is_partial(name)]
    locks = Path(".snakemake", "locks")
    if not partial or workflow.dryrun or not (locks.is_dir() and any(locks.iterdir())):
        return
    if not command_line().nolock:
        stop(
            "another Snakemake works in this folder (or was killed); to look at what it has made "
            f"so far: snakemake --nolock {' '.join(partial)}"
        )


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
    chosen, _ = report_at(report)
    # A partial report draws what has left the shared step 0.
    drawn = [e for e in chosen if not is_partial(report) or has_begun(report, e)]
    # Offline there are no steps to draw.
    by_step = dict.fromkeys(
        figures_folder(report, e) for e in drawn if e.scenario.n_steps > 1
    )
    return [
        at(f"{paths.REPORT.format(report=report)}/table.md"),
        *[f"{folder}/{paths.SCENARIO_FIGURES[0]}.pdf" for folder in by_step],
        *shares_figures(drawn, report),
        *[
            f"{figures_folder(report, e)}/{paths.CLASSES_FIGURE.format(run=e.run)}.pdf"
            for e in drawn
        ],
        # Models that are not there are not to be trained for it.
        *([] if is_partial(report) else model_figures(chosen, report)),
    ]


def report_files(report):
    """All files of a report."""
    return [
        *tables_and_figures(report),
        at(f"{paths.REPORT.format(report=report)}/tables.html"),
    ]


def files_of(report):
    """The input of a report's target; what there is of a partial one is looked up when asked."""
    if is_partial(report):
        return lambda wildcards: report_files(report)
    return report_files(report)


def has_begun(report, experiment):
    """Whether a step of its own was evaluated: one after step 0, unless there is none."""
    last = experiment.scenario.n_steps - 1
    return any(
        Path(artifact(paths.CONFUSION, experiment, seed, step)).is_file()
        for seed in report_at(report)[1]
        for step in range(min(1, last), last + 1)
    )


def report_experiments(wildcards):
    chosen, _ = report_at(wildcards.report)
    track = wildcards.get("scenario")
    return [
        e
        for e in chosen
        if track is None or (e.dataset, e.scenario.name) == (wildcards.dataset, track)
    ]
