# Input functions: which artifacts a rule looks at.


def index_inputs(wildcards):
    if is_generated(wildcards.dataset):
        return at(f"data/{wildcards.dataset}/fingerprint.txt")
    return []


def weights(wildcards):
    """The file that the encoder starts from at step 0, or none for training from scratch."""
    model = settings_of(wildcards)["model"]
    match model["weights"]:
        case "scratch":
            return []
        case "published" | "torchvision" as source:
            return at(f"weights/{source}-{model['backbone']}.pth")
        case spelled:
            path = os.path.expanduser(spelled)
            model = Path(at(paths.MODEL.format(**dict(wildcards.items()))))
            # A model that is there was trained from it: Snakemake takes the model as it is, should
            # the file have been moved since or not be seen from here. Else a dry run ends too.
            if Path(path).is_file() or model.is_file():
                return path
            stop(
                f"model.weights of dataset '{wildcards.dataset}' is '{spelled}': there is no such "
                "file; give published, torchvision, scratch or the path of a file"
            )


def trained_base(wildcards):
    """The model that a step 0 in closed form takes its features from: bce of bce_cfs."""
    place = {**dict(wildcards.items()), "run": wildcards.run.partition("_")[0]}
    return at(paths.MODEL.format(**place))


def previous(pattern):
    """An input function: the artifact of the step before, under the same experiment and seed."""

    def find(wildcards):
        step = int(wildcards.step) - 1
        return artifact(pattern, experiment_of(wildcards), wildcards.seed, step)

    return find


def splits_of_all_steps(wildcards):
    """The splits of step 0, which scenarios share, and of a scenario's later steps."""
    scenario = scenario_of(wildcards)
    tracks = [scenario.track(0), scenario.track(1)]
    return [
        at(paths.SPLIT.format(dataset=wildcards.dataset, track=track))
        for track in tracks
    ]


def exemplars(wildcards):
    """The exemplars of a run whose method has a memory, or none."""
    images = experiment_of(wildcards).method.memory
    if not images:
        return []
    return at(paths.EXEMPLARS.format(images=images, **dict(wildcards.items())))


def endpoint(wildcards):
    """The model that a step of a run with fusion has trained: its own or another run's."""
    return at(
        paths.trained_model(
            experiment_of(wildcards), wildcards.seed, int(wildcards.step)
        )
    )


def previous_importances(wildcards):
    if not experiment_of(wildcards).keeps_importances:
        return []
    return previous(paths.IMPORTANCES)(wildcards)


def next_split(wildcards):
    """The split whose images show the classes that come after the model's step."""
    return at(paths.SPLIT.format(dataset=wildcards.dataset, track=wildcards.scenario))


def attribution(wildcards):
    """The attribution beside the previous model, for initialisations that look at it."""
    if not experiment_of(wildcards).needs_attribution:
        return []
    return previous(paths.ATTRIBUTION)(wildcards)


def pretuned(wildcards):
    """Classifiers learned beside the previous model, for initialisations that are."""
    if not experiment_of(wildcards).needs_pretuning:
        return []
    return previous(paths.PRETUNED)(wildcards)


def confusions(wildcards):
    """The confusion matrices of a report; a partial one waits for none and takes what is there."""
    if is_partial(wildcards.report):
        return []
    return report_confusions(wildcards.report)


def histories(wildcards):
    """Histories of the first step that learns new classes, of the runs that train it."""
    if is_partial(wildcards.report):
        return []
    _, seeds = report_at(wildcards.report)
    return [
        artifact(
            paths.HISTORY, experiment, seed, min(1, experiment.scenario.n_steps - 1)
        )
        for experiment in report_experiments(wildcards)
        if not experiment.closed_form
        for seed in seeds
    ]


def experiment_drawn(wildcards):
    """The experiment of a figure of one run, and the seed of which models are shown."""
    _, seeds = report_at(wildcards.report)
    chosen = experiment_at(wildcards.dataset, wildcards.scenario, wildcards.run)
    return chosen, seeds[0]


def scenario_drawn(wildcards):
    return experiment_drawn(wildcards)[0].scenario


def settings_drawn(wildcards):
    return settings_at(wildcards.dataset, wildcards.scenario)


def last_split(wildcards):
    """The split whose test images show all classes."""
    chosen, _ = experiment_drawn(wildcards)
    track = chosen.scenario.track(chosen.scenario.n_steps - 1)
    return at(paths.SPLIT.format(dataset=chosen.dataset, track=track))


def predicting_models(wildcards):
    """Models of the steps whose predictions are shown."""
    chosen, seed = experiment_drawn(wildcards)
    return [
        artifact(paths.MODEL, chosen, seed, step)
        for step in examples.shown_steps(chosen.scenario.n_steps)
    ]


def attributed(pattern):
    """An input function: artifacts of the models that the steps shown start from."""

    def find(wildcards):
        chosen, seed = experiment_drawn(wildcards)
        shown = examples.shown_classes(chosen.scenario.classes_per_step)
        steps = dict.fromkeys(step for step, _ in shown)
        return [artifact(pattern, chosen, seed, step - 1) for step in steps]

    return find
