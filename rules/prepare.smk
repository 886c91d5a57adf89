# Bringing data sets into place: `snakemake prepare` lists them, `snakemake prepare_voc` makes one.
#
# These rules declare no outputs: Snakemake deletes the outputs of a job that it runs again or that
# failed, and a data set is not to be deleted. The script itself knows what is finished.

OWN_DATASETS = [name for name in CONFIG["datasets"] if not is_generated(name)]


rule prepare:
    """Say where each data set stands and how to get it."""
    log:
        at("data/logs/prepare.log"),
    conda:
        "../envs/ciss.yaml"
    params:
        program=program("prepare.py"),
        entries=entry_flags(OWN_DATASETS),
        sources=sources_flags(),
    shell:
        "{params.program:q} --explain {params.entries:q} {params.sources:q} --log {log:q}"


for dataset_name in OWN_DATASETS:
    if dataset_at(dataset_name).kind not in ciss.prepare.kinds():
        continue

    rule:
        name:
            f"prepare_{dataset_name}"
        log:
            at(f"data/logs/prepare_{dataset_name}.log"),
        conda:
            "../envs/ciss.yaml"
        threads: CONFIG["runtime"]["threads"]
        params:
            program=program("prepare.py"),
            entries=entry_flags([dataset_name]),
            sources=sources_flags(),
        shell:
            "{params.program:q} {params.entries:q} {params.sources:q} --workers {threads}"
            " --log {log:q}"

    made = ciss.prepare.recipe(dataset_at(dataset_name).kind)
    workflow.get_rule(f"prepare_{dataset_name}").docstring = (
        f"Bring {made.TITLE} into {dataset_at(dataset_name).root}."
    )
    # As `localrules:` does, which takes no names that are computed.
    workflow.localrules(f"prepare_{dataset_name}")
