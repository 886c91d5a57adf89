# `snakemake plan EXPERIMENT...` says what would run, what is shared and how long it takes. It runs
# nothing: the target is found on the command line before Snakemake looks for jobs.

import json
import subprocess
import tempfile


def summary_of(arguments):
    """What Snakemake says is to be done for a command line."""
    command = [sys.executable, "-m", "snakemake", "--summary", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stderr.splitlines()
    told = [line for line in said if line.startswith(("Warning: ", "Error: "))]
    if done.returncode != 0 and not told:
        told = said[-20:]
    print(*told, sep="\n", end="\n" if told else "", file=sys.stderr)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout


def print_plan(targets):
    arguments = sys.argv[1:]
    arguments.remove("plan")
    with tempfile.TemporaryDirectory() as folder:
        summary, settings = Path(folder, "summary.tsv"), Path(folder, "config.json")
        summary.write_text(summary_of(arguments))
        settings.write_text(json.dumps(config))
        program = [
            sys.executable,
            f"{workflow.basedir}/workflow_scripts/plan.py",
            *targets,
        ]
        command = [*program, "--summary", str(summary), "--config", str(settings)]
        sys.exit(subprocess.run(command).returncode)


if "plan" in requested_targets():
    print_plan([target for target in requested_targets() if target != "plan"])
