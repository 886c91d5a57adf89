# Use of a finished model: `snakemake predict` segments a folder of images, `snakemake export` writes
# ONNX. The checkpoint and the images may come from anywhere. They are no inputs: Snakemake would
# ask whether the model is up to date, and train it again where it is not.


check_given("predict", ("checkpoint", "images"))
check_given("export", ("checkpoint",))

PREDICTED, EXPORTED = [], []

if CONFIG["checkpoint"]:
    model = model_name()
    EXPORTED = [at(f"exports/{model}.onnx")]

    rule onnx:
        """Write the checkpoint as ONNX."""
        output:
            EXPORTED,
        log:
            at(f"exports/logs/{model}.log"),
        benchmark:
            at(f"exports/benchmarks/{model}.tsv")
        conda:
            "../envs/export.yaml"
        threads: CONFIG["runtime"]["threads"]
        params:
            program=program("export.py"),
            checkpoint=lambda wildcards, threads: path_argument(
                given_path("checkpoint")
            ),
            state=checkpoint_state,
        shell:
            "{params.program:q} --checkpoint {params.checkpoint:q} --threads {threads}"
            " --output {output:q} --log {log:q}"


if CONFIG["checkpoint"] and CONFIG["images"]:
    folder = prediction_folder()
    PREDICTED = [f"{folder}/images.csv"]

    rule segment:
        """Segment the images with the checkpoint."""
        output:
            images=PREDICTED,
            classes=f"{folder}/classes.csv",
        log:
            f"{folder}/logs/segment.log",
        benchmark:
            f"{folder}/benchmarks/segment.tsv"
        conda:
            "../envs/ciss.yaml"
        threads: CONFIG["runtime"]["threads"]
        resources:
            gpu=gpus_per_job(),
        params:
            program=program("predict.py"),
            settings=to_flags(
                {
                    "values": CONFIG["prediction"]["values"],
                    "overlay": float(CONFIG["prediction"]["overlay"]),
                }
            ),
            checkpoint=checkpoint_state,
            images=images_state,
            places=lambda wildcards, threads: to_flags(
                {
                    "checkpoint": given_path("checkpoint"),
                    "images": given_path("images"),
                    "output": prediction_folder(),
                }
            ),
            runtime=device_flags,
            batch=lambda wildcards, threads: CONFIG["prediction"]["batch"],
        shell:
            "{params.program:q} {params.places:q} {params.settings:q} {params.runtime:q}"
            " --batch {params.batch} --log {log:q}"


rule predict:
    """(with checkpoint and images) segment a folder of images with a finished model"""
    input:
        PREDICTED,


rule export:
    """(with checkpoint) write a finished model as ONNX"""
    input:
        EXPORTED,
