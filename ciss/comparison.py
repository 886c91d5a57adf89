"""Our results beside the published ones: the distance of each cell, and of step 0."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from ciss import published, results

#: of a cell: what it is, ours, the published number, and what else is published for it
CELL = [
    *(key for key in results.KEYS if key != "seed"),
    *results.PROTOCOL,
    "background",
    "score",
    "ours",
    "sd",
    "seeds",
    "published",
    "difference",
    "kind",
    "sources",
    "confidence",
    "others_lowest",
    "others_highest",
    "note",
    "otherwise",
]
BASE_STEP = ["step_0", "seed", "ours", "published", "sd", "difference", "reached", "source"]


def distances(
    summary: pd.DataFrame, keys: Mapping[str, str], otherwise: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Ours minus the published number for each cell that has one: columns ``CELL``.

    ``summary``: of ``results.summary``. ``keys``: what experiments, such as ``voc_15-1_mib``, are
    called in ``ciss.published``; only these are compared. ``background``: whether ``old`` and
    ``all`` count it; where papers do either, a run has rows for both. Where ours is missing, so
    is the difference. ``otherwise``: of experiments whose numbers come from a training that no
    settings are like, how that was; of these no difference is taken.
    """
    rows = []
    for run in results.over_seeds(summary).to_dict("records"):
        name = f"{run['dataset']}_{run['scenario']}_{run['run']}"
        key, said = keys.get(name), (otherwise or {}).get(name, "")
        for background in (True, False) if key else ():
            for score, number in published.numbers(str(key), background).items():
                lowest, highest = number.others or (float("nan"), float("nan"))
                rows.append(
                    run
                    | {
                        "background": background,
                        "score": score,
                        "ours": run[score],
                        "sd": run[f"{score}_sd"],
                        "published": number.value,
                        "difference": float("nan") if said else run[score] - number.value,
                        "kind": number.kind,
                        "sources": ", ".join(number.sources),
                        "confidence": number.confidence,
                        "others_lowest": lowest,
                        "others_highest": highest,
                        "note": number.note,
                        "otherwise": said,
                    }
                )
    return pd.DataFrame(rows, columns=CELL)


def base_steps(
    tidy: pd.DataFrame, step_0_of: Mapping[tuple[str, str, str], str], keys: Mapping[str, str]
) -> pd.DataFrame:
    """Step 0 beside what is published of it, a row for each model: columns ``BASE_STEP``.

    ``step_0_of``: the shared step 0 of each run, such as ``voc/15/ce`` for ``("voc", "15-1",
    "mib")``. ``keys``: what these are called in ``ciss.published``. ``reached`` is whether ours is
    within the published standard deviation of the published mean.
    """
    rows: dict[tuple[str, int], dict[str, object]] = {}
    steps = results.by_step(tidy)
    for row in steps[steps["step"] == 0].to_dict("records"):
        step_0 = step_0_of[row["dataset"], row["scenario"], row["run"]]
        if step_0 in keys:
            there = published.base_step(keys[step_0])
            difference = row["all"] - there.miou
            rows[step_0, row["seed"]] = {
                "step_0": step_0,
                "seed": row["seed"],
                "ours": row["all"],
                "published": there.miou,
                "sd": there.sd,
                "difference": difference,
                # Ours is printed with two digits.
                "reached": bool(round(abs(difference), 2) <= there.sd),
                "source": there.source,
            }
    return pd.DataFrame(list(rows.values()), columns=BASE_STEP)


def say_missed(base_steps: pd.DataFrame) -> list[str]:
    """A sentence for each step 0 whose models are not what was published."""
    sentences = []
    for step_0, rows in base_steps[~base_steps["reached"].astype(bool)].groupby(
        "step_0", sort=False
    ):
        first = rows.iloc[0]
        ours = ", ".join(f"{value:.2f}" for value in rows["ours"])
        sentences.append(
            f"Step 0 of {step_0} has {ours}, not {first['published']:g} ± {first['sd']:g} "
            f"({first['source']}): look at it before comparing."
        )
    return sentences


def say_overall(distances: pd.DataFrame) -> str:
    """One sentence: how many cells are compared, and how far they are."""
    distances = distances[distances["otherwise"] == ""]
    compared = distances.dropna(subset="difference")
    if compared.empty:
        return f"None of {len(distances)} published cells has a result of ours yet."
    away = compared["difference"].abs()
    farthest = compared.iloc[int(away.argmax())]
    return (
        f"{len(compared)} of {len(distances)} published cells have a result of ours: the mean "
        f"difference is {compared['difference'].mean():+.2f}, the mean distance {away.mean():.2f}, "
        f"the largest in "
        f"{farthest['dataset']}_{farthest['scenario']}_{farthest['run']} {farthest['score']} "
        f"({farthest['difference']:+.2f})."
    )
