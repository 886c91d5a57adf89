# Use of a finished model: `snakemake predict` segments a folder of images, `snakemake export` writes
# ONNX. The checkpoint and the images may come from anywhere. They are no inputs: Snakemake would
# ask whether the model is up to date, and train it again where it is not.


def given_path(name):
    return Path(CONFIG[name]).expanduser()


def check_given(target, names):
    """Stop where a target is asked for without the paths that it needs."""
    if target not in requested_targets():
        return
    for name in names:
        if not CONFIG[name]:
            words = " ".join(f"{other}=…" for other in names)
            stop(
                f"{target} needs {name}: snakemake {target} --config {words} (docs/predict.md)"
            )
        if not given_path(name).exists():
            stop(f"{name} is '{CONFIG[name]}', which does not exist")


def without_braces(name):
    """A name as a part of a path that Snakemake reads wildcards from."""
    return name.translate({ord(brace): "_" for brace in "{}"})


def model_name():
    """What the checkpoint is called in the paths of what is made with it."""
    path = given_path("checkpoint").absolute()
    *parts, seed, step = path.parts[-6:-1]
    # Below a results folder its path says what it is: dataset, track, run, seed and step.
    inside = len(parts) == 3 and seed.startswith("seed") and step.startswith("step")
    return without_braces("_".join([*parts, seed, step]) if inside else path.stem)


def prediction_folder():
    own = CONFIG["prediction"]["output"]
    if own != without_braces(own):
        stop(
            f"prediction.output is '{own}'; choose a folder without braces in its path"
        )
    if own:
        return str(Path(own).expanduser())
    images = given_path("images").absolute()
    return at(f"predictions/{without_braces(images.name)}/{model_name()}")


def state_of(path, names):
    """A setting: sizes and modification times of files below a folder."""
    stats = ciss.fingerprint.stat_files(path, set(names))
    return hashlib.sha256(repr(sorted(stats.items())).encode()).hexdigest()


def checkpoint_state(wildcards):
    path = given_path("checkpoint").absolute()
    return state_of(path.parent, [path.name])


def images_state(wildcards):
    path = given_path("images").absolute()
    try:
        names, _ = photos.find_images(path, Path(prediction_folder()))
    except CissError as error:
        stop(error)
    return state_of(path if path.is_dir() else path.parent, names)


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
            checkpoint=lambda wildcards, threads: str(given_path("checkpoint")),
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
                    "checkpoint": str(given_path("checkpoint")),
                    "images": str(given_path("images")),
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
