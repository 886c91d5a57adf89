# From a data set's folder to the images of each step.


rule generate_shapes:
    """Draw the images of a data set of kind `shapes`."""
    output:
        # Not all files: hundreds of images would only slow Snakemake down.
        train=at("data/{dataset}/splits/train_aug.txt"),
        val=at("data/{dataset}/splits/val.txt"),
        fingerprint=at("data/{dataset}/fingerprint.txt"),
    log:
        at("data/logs/{dataset}.log"),
    benchmark:
        at("data/benchmarks/{dataset}.tsv")
    conda:
        "../envs/ciss.yaml"
    threads: CONFIG["runtime"]["threads"]
    params:
        program=program("generate_shapes.py"),
        settings=lambda wildcards: to_flags(
            CONFIG["datasets"][wildcards.dataset]["generate"]
        ),
        root=lambda wildcards, output: str(Path(output.fingerprint).parent),
    shell:
        "{params.program:q} --root {params.root:q} --workers {threads}"
        " --log {log:q} {params.settings:q}"


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
    conda:
        "../envs/ciss.yaml"
    threads: CONFIG["runtime"]["threads"]
    params:
        program=program("index.py"),
        settings=index_flags,
        files=dataset_state,
        runtime=index_runtime_flags,
    shell:
        "{params.program:q} {params.settings:q} {params.runtime:q}"
        " --workers {threads} --output {output:q} --log {log:q}"


rule split:
    """Choose the images of each step of a scenario."""
    input:
        at(paths.INDEX),
    output:
        split=at(paths.SPLIT),
        manifest=at(paths.MANIFEST),
    log:
        at("{dataset}/{track}/logs/split.log"),
    benchmark:
        at("{dataset}/{track}/benchmarks/split.tsv")
    conda:
        "../envs/ciss.yaml"
    params:
        program=program("split.py"),
        settings=split_flags,
        runtime=root_flags,
    shell:
        "{params.program:q} --index {input:q} {params.settings:q} {params.runtime:q}"
        " --output {output.split:q} --manifest {output.manifest:q} --log {log:q}"


rule exemplars:
    """Choose the images of earlier steps that later ones train on again; methods share them."""
    input:
        index=at(paths.INDEX),
        splits=splits_of_all_steps,
    output:
        at(paths.EXEMPLARS),
    log:
        at("{dataset}/{track}/logs/exemplars_{images}_seed{seed}.log"),
    benchmark:
        at("{dataset}/{track}/benchmarks/exemplars_{images}_seed{seed}.tsv")
    conda:
        "../envs/ciss.yaml"
    params:
        program=program("exemplars.py"),
        settings=scenario_flags,
        runtime=root_flags,
    shell:
        "{params.program:q} --index {input.index:q} --splits {input.splits:q}"
        " --images {wildcards.images} --seed {wildcards.seed} {params.settings:q}"
        " {params.runtime:q} --output {output:q} --log {log:q}"


rule imagenet_weights:
    """Download an encoder's ImageNet weights."""
    output:
        at("weights/{source}-{backbone}.pth"),
    log:
        at("weights/logs/{source}-{backbone}.log"),
    benchmark:
        at("weights/benchmarks/{source}-{backbone}.tsv")
    wildcard_constraints:
        source="published|torchvision",
        backbone="resnet[0-9]+",
    conda:
        "../envs/ciss.yaml"
    params:
        program=program("imagenet_weights.py"),
        sources=sources_of_weights,
    shell:
        "{params.program:q} --source {wildcards.source}"
        " --backbone {wildcards.backbone} {params.sources:q} --output {output:q} --log {log:q}"
