# Training: step 0, which experiments share, and the steps after it.


def weights(wildcards):
    """The file that the encoder starts from at step 0, or none for training from scratch."""
    model = settings_of(wildcards)["model"]
    match model["weights"]:
        case "scratch":
            return []
        case "published" | "torchvision" as source:
            return at(f"weights/{source}-{model['backbone']}.pth")
        case path:
            return path


def network_flags(wildcards):
    model = settings_of(wildcards)["model"]
    return to_flags({name: value for name, value in model.items() if name != "weights"})


def previous(pattern):
    """An input function: the artifact of the step before, under the same experiment and seed."""

    def find(wildcards):
        step = int(wildcards.step) - 1
        return artifact(pattern, experiment_of(wildcards), wildcards.seed, step)

    return find


def previous_importances(wildcards):
    if not experiment_of(wildcards).keeps_importances:
        return []
    return previous(paths.IMPORTANCES)(wildcards)


def keepers():
    """A pattern for the runs whose method keeps importances, variants included."""
    sections = [CONFIG, *CONFIG["datasets"].values()]
    sections += [
        scenario for entry in sections[1:] for scenario in entry.get("scenarios", {}).values()
    ]
    declared = {name: options for part in sections for name, options in part.get("methods", {}).items()}
    kinds = {name: options.get("method", name) for name, options in declared.items()}
    kinds |= {name: name for name in methods.names()}
    names = [name for name, kind in kinds.items() if methods.describe(kind).keeps_importances]
    return "|".join(sorted(names))


KEEPERS = f"({keepers()})(_[a-z0-9-]+)?"


rule train_base:
    """Train step 0 under a base objective; experiments that begin alike share it."""
    input:
        split=at(paths.SPLIT),
        weights=weights,
    output:
        model=at(paths.MODEL.replace("{step}", "{step,0}")),
        history=at(paths.HISTORY),
    log:
        at(paths.STEP + "/logs/train.log"),
    benchmark:
        at(paths.STEP + "/benchmarks/train.tsv")
    wildcard_constraints:
        run="ce|bce",
    params:
        settings=lambda wildcards: labels_of(wildcards)
        + network_flags(wildcards)
        + recipe_flags(wildcards),
        classes=lambda wildcards: len(scenario_of(wildcards).new_classes(0)),
        files=lambda wildcards, input, output: to_flags(
            {
                "weights": input.get("weights") or None,
                "importances_out": output.get("importances"),
            }
        ),
        progress=lambda wildcards, output: str(Path(output.model).with_name("progress.pt")),
        runtime=runtime_flags,
    threads: CONFIG["runtime"]["threads"]
    resources:
        gpu=gpus_per_job(),
    conda:
        "../envs/ciss.yaml"
    shell:
        "{PYTHON:q} {SCRIPTS:q}/train.py --step 0 --method {wildcards.run} --seed {wildcards.seed}"
        " --split {input.split:q} --new-classes {params.classes} {params.files:q}"
        " {params.settings:q} {params.runtime:q} --progress {params.progress:q}"
        " --output {output.model:q} --history {output.history:q} --log {log:q}"


use rule train_base as train_base_importances with:
    output:
        model=at(paths.MODEL.replace("{step}", "{step,0}")),
        history=at(paths.HISTORY),
        importances=at(paths.IMPORTANCES),
    wildcard_constraints:
        run="ce-importance",


rule train_step:
    """Train a step after step 0, against the model of the step before."""
    input:
        init=at(paths.INIT),
        teacher=previous(paths.MODEL),
        split=at(paths.SPLIT),
        importances=previous_importances,
    output:
        model=at(paths.MODEL.replace("{step}", f"{{step,{STEP_AFTER_0}}}")),
        history=at(paths.HISTORY),
    log:
        at(paths.STEP + "/logs/train.log"),
    benchmark:
        at(paths.STEP + "/benchmarks/train.tsv")
    wildcard_constraints:
        run=f"(?!{KEEPERS}/)[a-z0-9-]+(_[a-z0-9-]+)?",
    params:
        settings=lambda wildcards: labels_of(wildcards) + recipe_flags(wildcards),
        method=lambda wildcards: to_flags({"method": experiment_of(wildcards).method.kind})
        + option_flags(experiment_of(wildcards).method.options),
        classes=lambda wildcards: len(scenario_of(wildcards).new_classes(int(wildcards.step))),
        files=lambda wildcards, input, output: to_flags(
            {
                "importances": input.get("importances") or None,
                "importances_out": output.get("importances"),
            }
        ),
        progress=lambda wildcards, output: str(Path(output.model).with_name("progress.pt")),
        runtime=runtime_flags,
    threads: CONFIG["runtime"]["threads"]
    resources:
        gpu=gpus_per_job(),
    conda:
        "../envs/ciss.yaml"
    shell:
        "{PYTHON:q} {SCRIPTS:q}/train.py --step {wildcards.step} {params.method:q}"
        " --seed {wildcards.seed} --split {input.split:q} --init {input.init:q}"
        " --teacher {input.teacher:q} --new-classes {params.classes} {params.files:q}"
        " {params.settings:q} {params.runtime:q} --progress {params.progress:q}"
        " --output {output.model:q} --history {output.history:q} --log {log:q}"


use rule train_step as train_step_importances with:
    output:
        model=at(paths.MODEL.replace("{step}", f"{{step,{STEP_AFTER_0}}}")),
        history=at(paths.HISTORY),
        importances=at(paths.IMPORTANCES),
    wildcard_constraints:
        run=KEEPERS,
