# What can be asked for by name: every matrix and experiment of the configuration, and any other
# experiment that the command line names. `snakemake --list` shows them. Comes last: a word on the
# command line that is neither an experiment nor a rule is an error.


# Never run: plan.smk ends before.
rule plan:
    """(with experiments) what would run and how long it takes; runs nothing"""
    input:
        [],


rule paper:
    input:
        [report_files(name) for name in CONFIG.get("paper", [])],


rule paper_partial:
    input:
        lambda wildcards: [
            path
            for name in CONFIG.get("paper", [])
            for path in report_files(f"{name}{ciss.config.PARTIAL}")
        ],


workflow.get_rule("paper").docstring = (
    f"tables and figures of {', '.join(CONFIG.get('paper', []))}"
)
workflow.get_rule("paper_partial").docstring = (
    "the same of what is there by now; trains nothing"
)
check_lock()
OTHER_NAMES = add_requested_experiments()
check_requested_files()

for matrix in CONFIG["matrices"]:
    if workflow.is_rule(matrix):
        stop(f"matrices.{matrix}: a rule has this name; choose another")

for target_name in [*REPORTS, *OTHER_NAMES]:

    rule:
        name:
            target_name
        input:
            files_of(OTHER_NAMES.get(target_name, target_name)),


for target_name, (chosen, seeds) in REPORTS.items():
    matrix = target_name.removesuffix(ciss.config.PARTIAL)
    what = (
        "experiment"
        if matrix not in CONFIG["matrices"]
        else f"{len(chosen)} experiments"
    )
    if is_partial(target_name):
        what = f"what is there of {matrix}: {what}"
    workflow.get_rule(target_name).docstring = (
        f"{what}, seeds {', '.join(map(str, seeds))}"
    )


remember_signatures()
