# From a data set's folder to the images of each step.


rule generate_shapes:
    """Draw the images of a data set of kind `shapes`."""
    output:
        # Not all files: hundreds of images would only slow Snakemake down.
        train=at("data/{dataset}/splits/train_aug.txt"),
        val=at("data/{dataset}/splits/val.txt"),
        fingerprint=at("data/{dataset}/fingerprint.txt"),
    log:
        at("data/{dataset}.log"),
    params:
        settings=lambda wildcards: to_flags(CONFIG["datasets"][wildcards.dataset]["generate"]),
        root=lambda wildcards, output: str(Path(output.fingerprint).parent),
    threads: CONFIG["runtime"]["threads"]
    conda:
        "../envs/ciss.yaml"
    shell:
        "{PYTHON:q} {SCRIPTS:q}/generate_shapes.py --root {params.root:q} --workers {threads}"
        " --log {log:q} {params.settings:q}"


def index_inputs(wildcards):
    if is_generated(wildcards.dataset):
        return rules.generate_shapes.output.fingerprint.format(dataset=wildcards.dataset)
    return []


rule index:
    """Check all images and masks of a data set and tabulate the masks' values."""
    input:
        index_inputs,
    output:
        at(paths.INDEX),
    log:
        at("{dataset}/logs/index.log"),
    benchmark:
        at("{dataset}/benchmarks/index.tsv")
    params:
        settings=lambda wildcards: dataset_flags(wildcards.dataset),
        files=dataset_state,
        runtime=root_flags,
    threads: CONFIG["runtime"]["threads"]
    conda:
        "../envs/ciss.yaml"
    shell:
        "{PYTHON:q} {SCRIPTS:q}/index.py {params.settings:q} {params.runtime:q}"
        " --workers {threads} --output {output:q} --log {log:q}"


def split_flags(wildcards):
    scenario = scenario_of(wildcards)
    steps = [0] if is_base(wildcards.track) else range(1, scenario.n_steps)
    spelled = f"{scenario.base}-{scenario.increment}" if scenario.increment else "offline"
    return labels_of(wildcards) + to_flags(
        {"scenario": spelled, "setup": scenario.setup, "steps": list(steps)}
    )


rule split:
    """Choose the images of each step of a scenario."""
    input:
        at(paths.INDEX),
    output:
        at(paths.SPLIT),
    log:
        at("{dataset}/{track}/logs/split.log"),
    benchmark:
        at("{dataset}/{track}/benchmarks/split.tsv")
    params:
        settings=split_flags,
        runtime=root_flags,
    conda:
        "../envs/ciss.yaml"
    shell:
        "{PYTHON:q} {SCRIPTS:q}/split.py --index {input:q} {params.settings:q} {params.runtime:q}"
        " --output {output:q} --log {log:q}"


rule imagenet_weights:
    """Download an encoder's ImageNet weights."""
    output:
        at("weights/{source}-{backbone}.pth"),
    log:
        at("weights/logs/{source}-{backbone}.log"),
    wildcard_constraints:
        source="published|torchvision",
        backbone="resnet[0-9]+",
    conda:
        "../envs/ciss.yaml"
    shell:
        "{PYTHON:q} {SCRIPTS:q}/imagenet_weights.py --source {wildcards.source}"
        " --backbone {wildcards.backbone} --output {output:q} --log {log:q}"
