"""Where artifacts lie under the results folder: the one place that knows.

A *track* is the scenario's name for later steps (``15-1``) and the base name for step 0 (``15``);
a *run* is method and initialisation (``mib_awt``) for later steps and the base objective (``ce``)
for step 0, with the method (``bce_cfs``) where that solves its classifiers in closed form. So
whatever may share a step 0 finds it under the same path.
"""

from __future__ import annotations

from ciss.experiments import Experiment

#: patterns with the workflow's wildcards, relative to the results folder
INDEX = "{dataset}/index.csv"
#: cache of the hashes that make up the fingerprint of a data set's files
FINGERPRINT = "{dataset}/fingerprint.json"
#: the same of a folder of saliency maps that a method is given
MAPS_FINGERPRINT = "{dataset}/saliency_{method}.json"
SPLIT = "{dataset}/{track}/split.csv"
#: counts and hashes of a split's lists of images
MANIFEST = "{dataset}/{track}/manifest.csv"
#: images of earlier steps that each later step trains on again
EXEMPLARS = "{dataset}/{track}/exemplars_{images}_seed{seed}.csv"
STEP = "{dataset}/{track}/{run}/seed{seed}/step{step}"
MODEL = f"{STEP}/model.safetensors"
HISTORY = f"{STEP}/history.csv"
IMPORTANCES = f"{STEP}/importances.safetensors"
#: what the regression of a closed-form method has seen
RIDGE = f"{STEP}/ridge.safetensors"
#: what a training leaves beside its model
OF_TRAINING = (HISTORY, IMPORTANCES)
#: the model as trained, where `model.safetensors` is its fusion with that of the step before
TRAINED = f"{STEP}/trained.safetensors"
INIT = f"{STEP}/init.safetensors"
CONFUSION = f"{STEP}/confusion.csv"
#: of the model in the same folder, for the classes that the next step of ``scenario`` learns
ATTRIBUTION = f"{STEP}/attribution_{{scenario}}.safetensors"
#: on the model in the same folder, for the same classes: what an initialisation has learned
PRETUNED = f"{STEP}/pretuned_{{scenario}}_{{init}}.safetensors"
#: beside the model, while it is trained and until it is evaluated
PROGRESS = "progress.pt"
#: beside pre-tuned classifiers, by their name, until a network is initialised with them
PRETUNING_PROGRESS = "progress_{name}.pt"
REPORT = "reports/{report}"
FIGURES = f"{REPORT}/figures/{{dataset}}_{{scenario}}"
#: what is drawn of each scenario of a report
SCENARIO_FIGURES = ("miou_by_step", "base_miou_by_step", "forgetting_by_class", "learning_curve")

#: drawn where a report's runs differ in the share of channels that AWT transfers
SHARES_FIGURE = "transfer_shares"

#: of one run: the IoU of each class after each step
CLASSES_FIGURE = "classes_{run}"
#: of one run: made from its models and images
PREDICTIONS_FIGURE = "predictions_{run}"
CHANNELS_FIGURE = "channel_scores_{run}"
ATTRIBUTION_FIGURE = "attribution_{run}"
#: all that is drawn of one run
RUN_FIGURES = (CLASSES_FIGURE, PREDICTIONS_FIGURE, CHANNELS_FIGURE, ATTRIBUTION_FIGURE)


def artifact(pattern: str, experiment: Experiment, seed: int, step: int) -> str:
    """Fill one of the patterns above for a step of an experiment."""
    trained = pattern in OF_TRAINING
    return pattern.format(
        dataset=experiment.dataset,
        track=experiment.scenario.track(step),
        run=experiment.trained_run_at(step) if trained else experiment.run_at(step),
        seed=seed,
        step=step,
        scenario=experiment.scenario.name,
        init=experiment.init.name,
    )


def trained_model(experiment: Experiment, seed: int, step: int) -> str:
    """The model that the training of a step leaves: fused or not, its own or another run's."""
    run = experiment.trained_run_at(step)
    fused = experiment.method.fuses and step > 0 and run == experiment.run_at(step)
    return (TRAINED if fused else MODEL).format(
        dataset=experiment.dataset,
        track=experiment.scenario.track(step),
        run=run,
        seed=seed,
        step=step,
    )
