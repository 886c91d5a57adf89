# From confusion matrices to tables and figures.


rule table:
    """Gather the confusion matrices of a report in tables."""
    input:
        confusions,
    output:
        results=at(f"{paths.REPORT}/results.csv"),
        summary=at(f"{paths.REPORT}/summary.csv"),
        csv=at(f"{paths.REPORT}/table.csv"),
        markdown=report(
            at(f"{paths.REPORT}/table.md"),
            category="Tables",
            labels={"report": "{report}"},
        ),
        latex=at(f"{paths.REPORT}/table.tex"),
        text=at(f"{paths.REPORT}/table.txt"),
    log:
        at(f"{paths.REPORT}/logs/table.log"),
    benchmark:
        at(f"{paths.REPORT}/benchmarks/table.tsv")
    conda:
        "../envs/ciss.yaml"
    params:
        program=program("tables.py"),
        settings=run_flags,
        preset=CONFIG.get("preset", ciss.config.DEFAULT_PRESET),
        folder=lambda wildcards, output: str(Path(output.results).parent),
        root=lambda wildcards, threads: RESULTS,
    shell:
        "{params.program:q} --results {params.root:q} {params.settings:q}"
        " --preset {params.preset:q} --output {params.folder:q} --log {log:q}"


rule figures:
    """Draw the figures of a scenario."""
    input:
        results=at(f"{paths.REPORT}/results.csv"),
        histories=histories,
    output:
        [
            (
                report(
                    at(f"{paths.FIGURES}/{figure}.{extension}"),
                    caption=f"../report/{figure}.rst",
                    category="Figures",
                    subcategory="{dataset} {scenario}",
                    labels={"figure": figure.replace("_", " ")},
                )
                if extension == "png"
                else at(f"{paths.FIGURES}/{figure}.{extension}")
            )
            for figure in paths.SCENARIO_FIGURES
            for extension in ("pdf", "png")
        ],
    log:
        at(f"{paths.FIGURES}/logs/figures.log"),
    benchmark:
        at(f"{paths.FIGURES}/benchmarks/figures.tsv")
    conda:
        "../envs/ciss.yaml"
    params:
        program=program("figures.py"),
        style=option_flags(CONFIG["figures"]),
        settings=run_flags,
        folder=lambda wildcards, output: str(Path(output[0]).parent),
        root=lambda wildcards, threads: RESULTS,
    shell:
        "{params.program:q} --results {params.root:q} --table {input.results:q}"
        " --dataset {wildcards.dataset} --scenario {wildcards.scenario} {params.settings:q}"
        " {params.style:q} --output {params.folder:q} --log {log:q}"


rule shares_figure:
    """Draw the scores of a scenario over the share of channels that AWT transfers."""
    input:
        at(f"{paths.REPORT}/summary.csv"),
    output:
        pdf=at(f"{paths.FIGURES}/{paths.SHARES_FIGURE}.pdf"),
        png=report(
            at(f"{paths.FIGURES}/{paths.SHARES_FIGURE}.png"),
            caption=f"../report/{paths.SHARES_FIGURE}.rst",
            category="Figures",
            subcategory="{dataset} {scenario}",
            labels={"figure": "shares of channels"},
        ),
    log:
        at(f"{paths.FIGURES}/logs/{paths.SHARES_FIGURE}.log"),
    benchmark:
        at(f"{paths.FIGURES}/benchmarks/{paths.SHARES_FIGURE}.tsv")
    conda:
        "../envs/ciss.yaml"
    params:
        program=program("shares_figure.py"),
        style=option_flags(CONFIG["figures"]),
        shares=lambda wildcards: [
            f"{run}={which}={share:g}"
            for run, (which, share) in shares_of(report_experiments(wildcards)).items()
        ],
        folder=lambda wildcards, output: str(Path(output.pdf).parent),
    shell:
        "{params.program:q} --summary {input:q} --dataset {wildcards.dataset}"
        " --scenario {wildcards.scenario} --shares {params.shares:q} {params.style:q}"
        " --output {params.folder:q} --log {log:q}"


rule class_figure:
    """Draw the IoU of each class after each step of one run."""
    input:
        at(f"{paths.REPORT}/results.csv"),
    output:
        pdf=at(f"{paths.FIGURES}/classes_{{run}}.pdf"),
        png=report(
            at(f"{paths.FIGURES}/classes_{{run}}.png"),
            caption="../report/classes.rst",
            category="Figures",
            subcategory="{dataset} {scenario}",
            labels={"figure": "classes of {run}"},
        ),
    log:
        at(f"{paths.FIGURES}/logs/classes_{{run}}.log"),
    benchmark:
        at(f"{paths.FIGURES}/benchmarks/classes_{{run}}.tsv")
    conda:
        "../envs/ciss.yaml"
    params:
        program=program("class_figure.py"),
        style=option_flags(CONFIG["figures"]),
        folder=lambda wildcards, output: str(Path(output.pdf).parent),
    shell:
        "{params.program:q} --table {input:q} --dataset {wildcards.dataset}"
        " --scenario {wildcards.scenario} --run {wildcards.run} {params.style:q}"
        " --output {params.folder:q} --log {log:q}"
