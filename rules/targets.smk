# What can be asked for by name: every matrix and experiment of the configuration, and any other
# experiment that the command line names. `snakemake --list` shows them. Comes last: a word on the
# command line that is neither an experiment nor a rule is an error.


rule paper:
    input:
        [report_files(name) for name in CONFIG.get("paper", [])],


workflow.get_rule("paper").docstring = (
    f"tables and figures of {', '.join(CONFIG.get('paper', []))}"
)
OTHER_NAMES = add_requested_experiments()

for matrix in CONFIG["matrices"]:
    if workflow.is_rule(matrix):
        stop(f"matrices.{matrix}: a rule has this name; choose another")

for target_name in [*REPORTS, *OTHER_NAMES]:

    rule:
        name:
            target_name
        input:
            report_files(OTHER_NAMES.get(target_name, target_name)),


for target_name, (chosen, seeds) in REPORTS.items():
    what = (
        "experiment"
        if target_name not in CONFIG["matrices"]
        else f"{len(chosen)} experiments"
    )
    workflow.get_rule(target_name).docstring = (
        f"{what}, seeds {', '.join(map(str, seeds))}"
    )
