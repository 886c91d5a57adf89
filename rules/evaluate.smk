# Evaluation is always of the saved model, in a job of its own.


rule evaluate:
    """Count how a model labels the test images of its step."""
    input:
        model=at(paths.MODEL),
        split=at(paths.SPLIT),
    output:
        at(paths.CONFUSION),
    log:
        at(f"{paths.STEP}/logs/evaluate.log"),
    benchmark:
        at(f"{paths.STEP}/benchmarks/evaluate.tsv")
    conda:
        "../envs/ciss.yaml"
    threads: CONFIG["runtime"]["threads"]
    resources:
        gpu=gpus_per_job(),
    params:
        program=program("evaluate.py"),
        settings=lambda wildcards: labels_of(wildcards)
        + to_flags(
            {
                "crop": settings_of(wildcards)["recipe"]["crop"],
                "mode": settings_of(wildcards)["evaluation"]["mode"],
                "images": evaluated_images(wildcards.dataset),
            }
        ),
        data=dataset_state,
        runtime=shared_runtime_flags,
        batch=lambda wildcards, threads: settings_of(wildcards)["evaluation"]["batch"],
    shell:
        "{params.program:q} --model {input.model:q} --split {input.split:q}"
        " --step {wildcards.step} {params.settings:q} {params.runtime:q} --batch {params.batch}"
        " --output {output:q} --log {log:q}"
