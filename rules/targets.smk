# What can be asked for by name: every matrix and experiment of the configuration, and any other
# experiment that the command line names. `snakemake --list` shows them.


rule paper:
    """Tables and figures of the matrices that `paper` lists in the configuration."""
    input:
        [report_files(name) for name in CONFIG.get("paper", [])],


for target_name in [*REPORTS, *ALIASES]:

    rule:
        name:
            target_name
        input:
            report_files(ALIASES.get(target_name, target_name)),


for target_name, (chosen, seeds) in REPORTS.items():
    what = (
        "experiment"
        if target_name not in CONFIG["matrices"]
        else f"{len(chosen)} experiments"
    )
    workflow.get_rule(target_name).docstring = (
        f"{what}, seeds {', '.join(map(str, seeds))}"
    )
