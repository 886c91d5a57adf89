"""Class-incremental semantic segmentation: the library behind the pipeline.

Nothing here knows Snakemake. The scripts in ``workflow_scripts/`` parse arguments and call
these modules; the rules in ``rules/`` say which script needs which file.
"""

__version__ = "0.1.0"
