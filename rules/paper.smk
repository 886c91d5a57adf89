# From confusion matrices to tables and figures.


def report_experiments(wildcards):
    chosen, _ = REPORTS[wildcards.report]
    track = wildcards.get("scenario")
    return [
        e
        for e in chosen
        if track is None or (e.dataset, e.scenario.name) == (wildcards.dataset, track)
    ]


def confusions(wildcards):
    _, seeds = REPORTS[wildcards.report]
    return [
        artifact(paths.CONFUSION, experiment, seed, step)
        for experiment in report_experiments(wildcards)
        for seed in seeds
        for step in range(experiment.scenario.n_steps)
    ]


def histories(wildcards):
    """Histories of the first step that learns new classes."""
    _, seeds = REPORTS[wildcards.report]
    return [
        artifact(paths.HISTORY, experiment, seed, 1)
        for experiment in report_experiments(wildcards)
        for seed in seeds
        if experiment.scenario.n_steps > 1
    ]


def run_flags(wildcards):
    """Each experiment as the scripts take it; paths would make the command too long."""
    _, seeds = REPORTS[wildcards.report]
    flags = []
    for e in report_experiments(wildcards):
        init = e.init.name if "_" in e.run else "-"
        counts = ",".join(map(str, e.scenario.classes_per_step))
        step_0 = f"{e.scenario.track(0)}/{e.run_at(0)}"
        flags += ["--run", e.dataset, e.scenario.name, e.method.name, init, counts, step_0]
    return flags + to_flags({"seeds": seeds})


rule table:
    """Gather the confusion matrices of a report in tables."""
    input:
        confusions,
    output:
        results=at(paths.REPORT + "/results.csv"),
        summary=at(paths.REPORT + "/summary.csv"),
        csv=at(paths.REPORT + "/table.csv"),
        markdown=report(at(paths.REPORT + "/table.md"), category="Tables", labels={"report": "{report}"}),
        latex=at(paths.REPORT + "/table.tex"),
        text=at(paths.REPORT + "/table.txt"),
    log:
        at(paths.REPORT + "/logs/table.log"),
    benchmark:
        at(paths.REPORT + "/benchmarks/table.tsv")
    params:
        settings=run_flags,
        folder=lambda wildcards, output: str(Path(output.results).parent),
        root=lambda wildcards, threads: RESULTS,
    conda:
        "../envs/ciss.yaml"
    shell:
        "{PYTHON:q} {SCRIPTS:q}/tables.py --results {params.root:q} {params.settings:q}"
        " --output {params.folder:q} --log {log:q}"


rule figures:
    """Draw the figures of a scenario."""
    input:
        results=at(paths.REPORT + "/results.csv"),
        histories=histories,
    output:
        [
            report(
                at(f"{paths.FIGURES}/{figure}.{extension}"),
                caption=f"../report/{figure}.rst",
                category="Figures",
                subcategory="{dataset} {scenario}",
                labels={"figure": figure.replace("_", " "), "format": extension},
            )
            if extension == "png"
            else at(f"{paths.FIGURES}/{figure}.{extension}")
            for figure in paths.SCENARIO_FIGURES
            for extension in ("pdf", "png")
        ],
    log:
        at(paths.FIGURES + "/logs/figures.log"),
    benchmark:
        at(paths.FIGURES + "/benchmarks/figures.tsv")
    params:
        style=option_flags(CONFIG["figures"]),
        settings=run_flags,
        folder=lambda wildcards, output: str(Path(output[0]).parent),
        root=lambda wildcards, threads: RESULTS,
    conda:
        "../envs/ciss.yaml"
    shell:
        "{PYTHON:q} {SCRIPTS:q}/figures.py --results {params.root:q} --table {input.results:q}"
        " --dataset {wildcards.dataset} --scenario {wildcards.scenario} {params.settings:q}"
        " {params.style:q} --output {params.folder:q} --log {log:q}"


rule class_figure:
    """Draw the IoU of each class after each step of one run."""
    input:
        at(paths.REPORT + "/results.csv"),
    output:
        pdf=at(paths.FIGURES + "/classes_{run}.pdf"),
        png=report(
            at(paths.FIGURES + "/classes_{run}.png"),
            caption="../report/classes.rst",
            category="Figures",
            subcategory="{dataset} {scenario}",
            labels={"figure": "classes of {run}", "format": "png"},
        ),
    log:
        at(paths.FIGURES + "/logs/classes_{run}.log"),
    benchmark:
        at(paths.FIGURES + "/benchmarks/classes_{run}.tsv")
    params:
        style=option_flags(CONFIG["figures"]),
        folder=lambda wildcards, output: str(Path(output.pdf).parent),
    conda:
        "../envs/ciss.yaml"
    shell:
        "{PYTHON:q} {SCRIPTS:q}/class_figure.py --table {input:q} --dataset {wildcards.dataset}"
        " --scenario {wildcards.scenario} --run {wildcards.run} {params.style:q}"
        " --output {params.folder:q} --log {log:q}"
