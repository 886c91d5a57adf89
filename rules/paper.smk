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
            labels={"report": "{report}", "table": "results"},
        ),
        latex=at(f"{paths.REPORT}/table.tex"),
        text=at(f"{paths.REPORT}/table.txt"),
        distance_csv=at(f"{paths.REPORT}/distance.csv"),
        distance=report(
            at(f"{paths.REPORT}/distance.md"),
            caption="../report/distance.rst",
            category="Tables",
            labels={"report": "{report}", "table": "distance to the papers"},
        ),
    log:
        at(f"{paths.REPORT}/logs/table.log"),
    benchmark:
        at(f"{paths.REPORT}/benchmarks/table.tsv")
    conda:
        "../envs/ciss.yaml"
    params:
        program=program("tables.py"),
        settings=run_flags,
        published=published_flags,
        published_version=published_version,
        found=found_files,
        preset=CONFIG.get("preset", ciss.config.DEFAULT_PRESET),
        folder=lambda wildcards, output: str(Path(output.results).parent),
        root=lambda wildcards, threads: RESULTS,
    shell:
        "{params.program:q} --results {params.root:q} {params.settings:q}"
        " {params.published:q} --preset {params.preset:q} --output {params.folder:q} --log {log:q}"


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
        pdf=at(f"{paths.FIGURES}/{paths.CLASSES_FIGURE}.pdf"),
        png=report(
            at(f"{paths.FIGURES}/{paths.CLASSES_FIGURE}.png"),
            caption="../report/classes.rst",
            category="Figures",
            subcategory="{dataset} {scenario}",
            labels={"figure": "classes of {run}"},
        ),
    log:
        at(f"{paths.FIGURES}/logs/{paths.CLASSES_FIGURE}.log"),
    benchmark:
        at(f"{paths.FIGURES}/benchmarks/{paths.CLASSES_FIGURE}.tsv")
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


rule prediction_figure:
    """Draw images beside their ground truth and what a run predicts after its steps."""
    input:
        index=at(paths.INDEX),
        split=last_split,
        models=predicting_models,
    output:
        pdf=at(f"{paths.FIGURES}/{paths.PREDICTIONS_FIGURE}.pdf"),
        png=report(
            at(f"{paths.FIGURES}/{paths.PREDICTIONS_FIGURE}.png"),
            caption="../report/predictions.rst",
            category="Figures",
            subcategory="{dataset} {scenario}",
            labels={"figure": "predictions of {run}"},
        ),
    log:
        at(f"{paths.FIGURES}/logs/{paths.PREDICTIONS_FIGURE}.log"),
    benchmark:
        at(f"{paths.FIGURES}/benchmarks/{paths.PREDICTIONS_FIGURE}.tsv")
    conda:
        "../envs/ciss.yaml"
    threads: CONFIG["runtime"]["threads"]
    resources:
        gpu=gpus_per_job(),  # all that a job may have: no two jobs shall be on the first
    params:
        program=program("prediction_figure.py"),
        style=option_flags(CONFIG["figures"]),
        settings=lambda wildcards: label_flags(
            wildcards.dataset, scenario_drawn(wildcards).order
        )
        + to_flags(
            {
                "classes_per_step": scenario_drawn(wildcards).classes_per_step,
                "steps": examples.shown_steps(scenario_drawn(wildcards).n_steps),
                "crop": settings_drawn(wildcards)["recipe"]["crop"],
                "mode": settings_drawn(wildcards)["evaluation"]["mode"],
                "images": evaluated_images(wildcards.dataset),
            }
        ),
        folder=lambda wildcards, output: str(Path(output.pdf).parent),
        data=dataset_state,
        runtime=runtime_flags,
    shell:
        "{params.program:q} --index {input.index:q} --split {input.split:q}"
        " --run {wildcards.run} --models {input.models:q} {params.settings:q}"
        " {params.runtime:q} {params.style:q} --output {params.folder:q} --log {log:q}"


rule attribution_figures:
    """Draw which channels attribution chooses for new classes, and where in images they speak."""
    input:
        index=at(paths.INDEX),
        split=last_split,
        models=attributed(paths.MODEL),
        attributions=attributed(paths.ATTRIBUTION),
    output:
        [
            (
                report(
                    at(f"{paths.FIGURES}/{figure}.png"),
                    caption=f"../report/{figure.removesuffix('_{run}')}.rst",
                    category="Figures",
                    subcategory="{dataset} {scenario}",
                    labels={
                        "figure": f"{figure.removesuffix('_{run}').replace('_', ' ')} of {{run}}"
                    },
                )
                if extension == "png"
                else at(f"{paths.FIGURES}/{figure}.pdf")
            )
            for figure in (paths.CHANNELS_FIGURE, paths.ATTRIBUTION_FIGURE)
            for extension in ("pdf", "png")
        ],
    log:
        at(f"{paths.FIGURES}/logs/attribution_figures_{{run}}.log"),
    benchmark:
        at(f"{paths.FIGURES}/benchmarks/attribution_figures_{{run}}.tsv")
    conda:
        "../envs/ciss.yaml"
    threads: CONFIG["runtime"]["threads"]
    resources:
        gpu=gpus_per_job(),  # all that a job may have: no two jobs shall be on the first
    params:
        program=program("attribution_figures.py"),
        style=option_flags(CONFIG["figures"]),
        settings=lambda wildcards: label_flags(
            wildcards.dataset, scenario_drawn(wildcards).order
        )
        + attribution_flags(wildcards),
        shown=lambda wildcards: [
            f"{step}:{label}"
            for step, label in examples.shown_classes(
                scenario_drawn(wildcards).classes_per_step
            )
        ],
        channels=channel_flags,
        folder=lambda wildcards, output: str(Path(output[0]).parent),
        data=dataset_state,
        runtime=runtime_flags,
    shell:
        "{params.program:q} --index {input.index:q} --split {input.split:q}"
        " --run {wildcards.run} --shown {params.shown} --models {input.models:q}"
        " --attributions {input.attributions:q} {params.channels:q} {params.settings:q}"
        " {params.runtime:q} {params.style:q} --output {params.folder:q} --log {log:q}"
