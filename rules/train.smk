# Training: step 0, which experiments share, and the steps after it. Their outputs are told apart by
# the step alone: input functions of the wrong rule would not understand the path.


rule train_base:
    """Train step 0 under a base objective; experiments that begin alike share it."""
    input:
        split=at(paths.SPLIT),
        weights=weights,
    output:
        model=at(paths.MODEL),
        history=at(paths.HISTORY),
    log:
        at(f"{paths.STEP}/logs/train.log"),
    benchmark:
        at(f"{paths.STEP}/benchmarks/train.tsv")
    wildcard_constraints:
        run=BASE_RUNS,
        step="0",
    conda:
        "../envs/ciss.yaml"
    threads: CONFIG["runtime"]["threads"]
    resources:
        gpu=gpus_per_job(),
    params:
        program=program("train.py"),
        settings=lambda wildcards: labels_of(wildcards)
        + network_flags(wildcards)
        + recipe_flags(wildcards)
        + preallocation_flags(wildcards)
        + base_method_flags(wildcards),
        classes=lambda wildcards: len(scenario_of(wildcards).new_classes(0)),
        files=lambda wildcards, input, output: to_flags(
            {
                "weights": Path(input.weights) if input.get("weights") else None,
                "importances_out": output.get("importances"),
            }
        ),
        progress=progress_file,
        data=training_data_state,
        runtime=training_flags,
    shell:
        "{params.program:q} --step 0 --method {wildcards.run} --seed {wildcards.seed}"
        " --split {input.split:q} --new-classes {params.classes} {params.files:q}"
        " {params.settings:q} {params.runtime:q} --data-state {params.data:q} --progress {params.progress:q}"
        " --output {output.model:q} --history {output.history:q} --log {log:q}"


use rule train_base as train_base_importances with:
    output:
        model=at(paths.MODEL),
        history=at(paths.HISTORY),
        importances=at(paths.IMPORTANCES),
    wildcard_constraints:
        run="ce-importance",
        step="0",


rule train_step:
    """Train a step after step 0, against the model of the step before."""
    input:
        init=at(paths.INIT),
        teacher=previous(paths.MODEL),
        split=at(paths.SPLIT),
        importances=previous_importances,
        exemplars=exemplars,
    output:
        model=at(paths.MODEL),
        history=at(paths.HISTORY),
    log:
        at(f"{paths.STEP}/logs/train.log"),
    benchmark:
        at(f"{paths.STEP}/benchmarks/train.tsv")
    wildcard_constraints:
        run=f"(?!({KEEPERS}|{FUSERS}|{SOLVED})/)[a-z0-9-]+(_[a-z0-9-]+)?",
        step=STEP_AFTER_0,
    conda:
        "../envs/ciss.yaml"
    threads: CONFIG["runtime"]["threads"]
    resources:
        gpu=gpus_per_job(),
    params:
        program=program("train.py"),
        settings=lambda wildcards: labels_of(wildcards) + recipe_flags(wildcards),
        method=lambda wildcards: to_flags(
            {"method": experiment_of(wildcards).method.kind}
        )
        + freeze_flags(wildcards)
        + memory_flags(wildcards)
        + method_option_flags(experiment_of(wildcards).method),
        classes=lambda wildcards: len(
            scenario_of(wildcards).new_classes(int(wildcards.step))
        ),
        files=lambda wildcards, input, output: to_flags(
            {
                "importances": input.get("importances") or None,
                "importances_out": output.get("importances"),
                "exemplars": input.get("exemplars") or None,
            }
        ),
        progress=progress_file,
        data=training_data_state,
        runtime=training_flags,
    shell:
        "{params.program:q} --step {wildcards.step} {params.method:q}"
        " --seed {wildcards.seed} --split {input.split:q} --init {input.init:q}"
        " --teacher {input.teacher:q} --new-classes {params.classes} {params.files:q}"
        " {params.settings:q} {params.runtime:q} --data-state {params.data:q} --progress {params.progress:q}"
        " --output {output.model:q} --history {output.history:q} --log {log:q}"


use rule train_step as train_step_importances with:
    output:
        model=at(paths.MODEL),
        history=at(paths.HISTORY),
        importances=at(paths.IMPORTANCES),
    wildcard_constraints:
        run=KEEPERS,
        step=STEP_AFTER_0,


use rule train_step as train_endpoint with:
    output:
        model=at(paths.TRAINED),
        history=at(paths.HISTORY),
    wildcard_constraints:
        run=FUSERS_THAT_DO_NOT,
        step=STEP_AFTER_0,


use rule train_step as train_endpoint_importances with:
    output:
        model=at(paths.TRAINED),
        history=at(paths.HISTORY),
        importances=at(paths.IMPORTANCES),
    wildcard_constraints:
        run=FUSERS_THAT_KEEP,
        step=STEP_AFTER_0,


rule fuse:
    """Fuse the model that a step has trained with the one before: what later steps start from."""
    input:
        old=previous(paths.MODEL),
        new=endpoint,
    output:
        at(paths.MODEL),
    log:
        at(f"{paths.STEP}/logs/fuse.log"),
    benchmark:
        at(f"{paths.STEP}/benchmarks/fuse.tsv")
    wildcard_constraints:
        run=FUSERS,
        step=STEP_AFTER_0,
    conda:
        "../envs/ciss.yaml"
    params:
        program=program("fuse.py"),
        settings=lambda wildcards: to_flags(
            {"fusion": experiment_of(wildcards).method.fuse}
        ),
    shell:
        "{params.program:q} --old {input.old:q} --new {input.new:q} {params.settings:q}"
        " --output {output:q} --log {log:q}"
