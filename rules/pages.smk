# Pages of a report for people: Snakemake's own report embeds them beside the figures.


rule pages:
    """Write sortable tables, jobs with their logs, and configuration and versions as HTML."""
    input:
        lambda wildcards: tables_and_figures(wildcards.report),
    output:
        tables=report(
            at(f"{paths.REPORT}/tables.html"),
            caption="../report/tables.rst",
            category="Tables",
            labels={"report": "{report}", "table": "all scores, sortable"},
        ),
        jobs=report(
            at(f"{paths.REPORT}/jobs.html"),
            caption="../report/jobs.rst",
            category="Jobs and configuration",
            labels={"report": "{report}", "page": "run times and logs"},
        ),
        configuration=report(
            at(f"{paths.REPORT}/configuration.html"),
            caption="../report/configuration.rst",
            category="Jobs and configuration",
            labels={"report": "{report}", "page": "configuration and versions"},
        ),
    log:
        at(f"{paths.REPORT}/logs/pages.log"),
    benchmark:
        at(f"{paths.REPORT}/benchmarks/pages.tsv")
    conda:
        "../envs/ciss.yaml"
    params:
        program=program("pages.py"),
        settings=run_flags,
        # Not compared: what changes a result reaches this page by its inputs.
        configuration=lambda wildcards, threads: shown_configuration(wildcards.report),
        folder=lambda wildcards, output: str(Path(output.tables).parent),
        root=lambda wildcards, threads: RESULTS,
    shell:
        "{params.program:q} --results {params.root:q} {params.settings:q}"
        " --report {wildcards.report} --configuration {params.configuration:q}"
        " --output {params.folder:q} --log {log:q}"
