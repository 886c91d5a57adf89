"""Class-incremental semantic segmentation: from images to the paper's tables and figures.

snakemake --list                          the experiments of the configuration
snakemake -n voc_15-1_mib_awt             what an experiment would run
snakemake plan voc_15-1_mib_awt           how long that would take
snakemake --profile slurm voc_15-1_mib_awt
snakemake predict --config checkpoint=model.safetensors images=photos
"""

from pathlib import Path

from snakemake.utils import min_version

min_version("9.27")


# Beside this file, wherever Snakemake was started.
configfile: str(Path(workflow.basedir) / "config.yaml")


report: "report/workflow.rst"


# Seconds of work, or a network that compute nodes lack: these run where Snakemake runs.
localrules:
    imagenet_weights,
    prepare,
    split,
    exemplars,
    transfer,
    fuse,
    table,
    figures,
    shares_figure,
    class_figure,
    pages,
    paper,
    plan,
    predict,
    export,


include: "rules/common.smk"
include: "rules/reports.smk"
include: "rules/settings.smk"
include: "rules/inputs.smk"
include: "rules/data.smk"
include: "rules/prepare.smk"
include: "rules/train.smk"
include: "rules/solve.smk"
include: "rules/awt.smk"
include: "rules/evaluate.smk"
include: "rules/paper.smk"
include: "rules/plan.smk"
include: "rules/predict.smk"
include: "rules/pages.smk"
include: "rules/targets.smk"


# Without a target. Not a flag of the rule: the end of an include takes that back.
workflow.default_target = "paper"
