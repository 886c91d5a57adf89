# Starting the classifiers of new classes: attribution of the old model's channels, and transfer.


def next_split(wildcards):
    """The split whose images show the classes that come after the model's step."""
    return at(paths.SPLIT.format(dataset=wildcards.dataset, track=wildcards.scenario))


rule attribute:
    """Attribute the background classifier's channels on the next step's images.

    Keeps what every fraction, pooling and grouping needs, and lies beside the model it looks at:
    whichever experiments share the model share its attribution.
    """
    input:
        model=at(paths.MODEL),
        split=next_split,
    output:
        at(paths.ATTRIBUTION),
    log:
        at(paths.STEP + "/logs/attribute_{scenario}.log"),
    benchmark:
        at(paths.STEP + "/benchmarks/attribute_{scenario}.tsv")
    params:
        settings=lambda wildcards: dataset_flags(
            wildcards.dataset, scenario_at(wildcards.dataset, wildcards.scenario, False).order
        )
        + attribution_flags(wildcards),
        classes=lambda wildcards: len(
            scenario_at(wildcards.dataset, wildcards.scenario, False).new_classes(
                int(wildcards.step) + 1
            )
        ),
        step=lambda wildcards: int(wildcards.step) + 1,
        runtime=runtime_flags,
        batch=lambda wildcards, threads: CONFIG["evaluation"]["batch"],
    threads: CONFIG["runtime"]["threads"]
    resources:
        gpu=gpus_per_job(),
    conda:
        "../envs/ciss.yaml"
    shell:
        "{PYTHON:q} {SCRIPTS:q}/attribute.py --model {input.model:q} --split {input.split:q}"
        " --step {params.step} --new-classes {params.classes} {params.settings:q}"
        " {params.runtime:q} --batch {params.batch} --output {output:q} --log {log:q}"


def attribution_flags(wildcards):
    chosen = settings_at(wildcards.dataset, wildcards.scenario)
    flags = {"method": chosen["attribution"]["method"], "crop": chosen["recipe"]["crop"]}
    # The closed form has no steps: changing their number must not rerun it.
    if flags["method"] == "captum":
        flags["n_steps"] = chosen["attribution"]["steps"]
    return to_flags(flags)


def attribution(wildcards):
    """The attribution beside the previous model, for initialisations that look at it."""
    if not experiment_of(wildcards).needs_attribution:
        return []
    return previous(paths.ATTRIBUTION)(wildcards)


rule transfer:
    """Widen the previous model by the new classes and initialise their classifier."""
    input:
        model=previous(paths.MODEL),
        attribution=attribution,
    output:
        at(paths.INIT.replace("{step}", f"{{step,{STEP_AFTER_0}}}")),
    log:
        at(paths.STEP + "/logs/transfer.log"),
    benchmark:
        at(paths.STEP + "/benchmarks/transfer.tsv")
    params:
        initialisation=lambda wildcards: to_flags(
            {"initialisation": experiment_of(wildcards).init.kind}
        )
        + option_flags(experiment_of(wildcards).init.options),
        classes=lambda wildcards: len(scenario_of(wildcards).new_classes(int(wildcards.step))),
        files=lambda wildcards, input: to_flags({"attribution": input.get("attribution") or None}),
    conda:
        "../envs/ciss.yaml"
    shell:
        "{PYTHON:q} {SCRIPTS:q}/transfer.py --model {input.model:q} {params.files:q}"
        " --new-classes {params.classes} --seed {wildcards.seed} --step {wildcards.step}"
        " {params.initialisation:q} --output {output:q} --log {log:q}"
