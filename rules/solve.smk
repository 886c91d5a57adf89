# Closed-form methods: their steps are solved in one pass over the images, where others train. What
# their regression has seen travels from step to step beside the model.


rule solve_base:
    """Solve the classifiers of step 0 on the features of the model that its objective trained."""
    input:
        model=trained_base,
        split=at(paths.SPLIT),
    output:
        model=at(paths.MODEL),
        ridge=at(paths.RIDGE),
    log:
        at(f"{paths.STEP}/logs/solve.log"),
    benchmark:
        at(f"{paths.STEP}/benchmarks/solve_base.tsv")
    wildcard_constraints:
        run=f"[a-z-]+_({SOLVED})",
        step="0",
    conda:
        "../envs/ciss.yaml"
    threads: CONFIG["runtime"]["threads"]
    resources:
        gpu=gpus_per_job(),
    params:
        program=program("solve.py"),
        settings=lambda wildcards: labels_of(wildcards)
        + to_flags({"crop": settings_of(wildcards)["recipe"]["crop"]}),
        method=solved_base_flags,
        classes=lambda wildcards: len(scenario_of(wildcards).new_classes(0)),
        data=dataset_state,
        runtime=shared_runtime_flags,
        batch=lambda wildcards, threads: settings_of(wildcards)["evaluation"]["batch"],
    shell:
        "{params.program:q} --step 0 {params.method:q} --seed {wildcards.seed}"
        " --model {input.model:q} --split {input.split:q} --new-classes {params.classes}"
        " {params.settings:q} {params.runtime:q} --batch {params.batch}"
        " --output {output.model:q} --ridge-out {output.ridge:q} --log {log:q}"


rule solve_step:
    """Solve all classifiers again with what a later step's images add."""
    input:
        model=previous(paths.MODEL),
        ridge=previous(paths.RIDGE),
        split=at(paths.SPLIT),
    output:
        model=at(paths.MODEL),
        ridge=at(paths.RIDGE),
    log:
        at(f"{paths.STEP}/logs/solve.log"),
    benchmark:
        at(f"{paths.STEP}/benchmarks/solve_step.tsv")
    wildcard_constraints:
        run=SOLVED,
        step=STEP_AFTER_0,
    conda:
        "../envs/ciss.yaml"
    threads: CONFIG["runtime"]["threads"]
    resources:
        gpu=gpus_per_job(),
    params:
        program=program("solve.py"),
        settings=lambda wildcards: labels_of(wildcards)
        + to_flags({"crop": settings_of(wildcards)["recipe"]["crop"]}),
        method=lambda wildcards: to_flags(
            {"method": experiment_of(wildcards).method.kind}
        )
        + option_flags(experiment_of(wildcards).method.options),
        classes=lambda wildcards: len(
            scenario_of(wildcards).new_classes(int(wildcards.step))
        ),
        data=dataset_state,
        runtime=shared_runtime_flags,
        batch=lambda wildcards, threads: settings_of(wildcards)["evaluation"]["batch"],
    shell:
        "{params.program:q} --step {wildcards.step} {params.method:q} --seed {wildcards.seed}"
        " --model {input.model:q} --ridge {input.ridge:q} --split {input.split:q}"
        " --new-classes {params.classes} {params.settings:q} {params.runtime:q}"
        " --batch {params.batch} --output {output.model:q} --ridge-out {output.ridge:q}"
        " --log {log:q}"
