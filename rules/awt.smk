# Starting the classifiers of new classes: what is learned of them from the old model and the step's
# images (attribution of its channels, or pre-tuning), and transfer.


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
        at(f"{paths.STEP}/logs/attribute_{{scenario}}.log"),
    benchmark:
        at(f"{paths.STEP}/benchmarks/attribute_{{scenario}}.tsv")
    conda:
        "../envs/ciss.yaml"
    threads: CONFIG["runtime"]["threads"]
    resources:
        gpu=gpus_per_job(),
    params:
        program=program("attribute.py"),
        settings=lambda wildcards: label_flags(
            wildcards.dataset,
            scenario_at(wildcards.dataset, wildcards.scenario, False).order,
        )
        + attribution_flags(wildcards),
        classes=lambda wildcards: len(
            scenario_at(wildcards.dataset, wildcards.scenario, False).new_classes(
                int(wildcards.step) + 1
            )
        ),
        step=lambda wildcards: int(wildcards.step) + 1,
        data=dataset_state,
        runtime=shared_runtime_flags,
        batch=lambda wildcards, threads: settings_of(wildcards)["evaluation"]["batch"],
    shell:
        "{params.program:q} --model {input.model:q} --split {input.split:q}"
        " --step {params.step} --new-classes {params.classes} {params.settings:q}"
        " {params.runtime:q} --batch {params.batch} --output {output:q} --log {log:q}"


rule pretune:
    """Learn the next step's new classifiers on the frozen model, for initialisations that are learned.

    Lies beside the model it looks at: methods that share the model share what is learned on it.
    """
    input:
        model=at(paths.MODEL),
        split=next_split,
    output:
        at(paths.PRETUNED),
    log:
        at(f"{paths.STEP}/logs/pretune_{{scenario}}_{{init}}.log"),
    benchmark:
        at(f"{paths.STEP}/benchmarks/pretune_{{scenario}}_{{init}}.tsv")
    conda:
        "../envs/ciss.yaml"
    threads: CONFIG["runtime"]["threads"]
    resources:
        gpu=gpus_per_job(),
    params:
        program=program("pretune.py"),
        settings=lambda wildcards: label_flags(
            wildcards.dataset,
            scenario_at(wildcards.dataset, wildcards.scenario, False).order,
        )
        + pretuning_flags(wildcards),
        classes=lambda wildcards: len(
            scenario_at(wildcards.dataset, wildcards.scenario, False).new_classes(
                int(wildcards.step) + 1
            )
        ),
        step=lambda wildcards: int(wildcards.step) + 1,
        progress=pretuning_progress_file,
        data=dataset_state,
        runtime=reading_flags,
    shell:
        "{params.program:q} --model {input.model:q} --split {input.split:q}"
        " --step {params.step} --new-classes {params.classes} --seed {wildcards.seed}"
        " {params.settings:q} {params.runtime:q} --data-state {params.data:q}"
        " --progress {params.progress:q} --output {output:q} --log {log:q}"


rule transfer:
    """Widen the previous model by the new classes and initialise their classifier."""
    input:
        model=previous(paths.MODEL),
        attribution=attribution,
        pretuned=pretuned,
    output:
        at(paths.INIT),
    log:
        at(f"{paths.STEP}/logs/transfer.log"),
    benchmark:
        at(f"{paths.STEP}/benchmarks/transfer.tsv")
    wildcard_constraints:
        step=STEP_AFTER_0,
    conda:
        "../envs/ciss.yaml"
    params:
        program=program("transfer.py"),
        initialisation=lambda wildcards: to_flags(
            {"initialisation": experiment_of(wildcards).init.kind}
        )
        + option_flags(experiment_of(wildcards).init.options),
        classes=lambda wildcards: len(
            scenario_of(wildcards).new_classes(int(wildcards.step))
        ),
        files=lambda wildcards, input: to_flags(
            {
                "attribution": input.get("attribution") or None,
                "pretuned": input.get("pretuned") or None,
            }
        ),
    shell:
        "{params.program:q} --model {input.model:q} {params.files:q}"
        " --new-classes {params.classes} --seed {wildcards.seed} --step {wildcards.step}"
        " {params.initialisation:q} --output {output:q} --log {log:q}"
