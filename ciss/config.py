"""The configuration: checking it, and the settings that hold for a dataset and a scenario.

Settings have three levels. The sections at the top of ``config.yaml`` hold everywhere, those of
``datasets.NAME`` override them for a dataset, those of ``datasets.NAME.scenarios.SCENARIO`` for
one scenario's steps after step 0, which scenarios share.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ciss import datasets, initialisations, methods
from ciss.datasets import Dataset
from ciss.errors import CissError
from ciss.files import YAML_LOADER, read_yaml
from ciss.flags import check_value, read_value
from ciss.names import unknown
from ciss.scenarios import SETUPS, Scenario, parse_scenario

_REPOSITORY = Path(__file__).resolve().parent.parent
SCHEMA = _REPOSITORY / "schemas" / "config.schema.yaml"
#: characters that no path of an input or output of a rule may have
UNUSABLE = r"[{}\x00-\x1f\x7f]"
_UNUSABLE_PATH = "Snakemake takes braces in a path for wildcards, and no line break"
#: one file a preset, named as the setting ``preset`` names it
PRESETS = _REPOSITORY / "configs" / "presets"
#: the constants in config.yaml and in the code
DEFAULT_PRESET = "awt"

#: ends the name of a target and report that takes what is there and trains nothing
PARTIAL = "_partial"

#: what a generated dataset must say
GENERATED = ("train", "val", "size", "seed")
#: from which on the teacher's class is the label of an exemplar's background, as in SSUL
MEMORY_CONFIDENCE = 0.7
#: sections that datasets and scenarios may override
SECTIONS = ("model", "recipe", "attribution", "evaluation", "methods", "initialisations")

Config = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A method or an initialisation as experiments name it, with all its options."""

    name: str
    kind: str
    options: dict[str, Any]
    #: images of earlier steps in half of every batch of the later ones; of a method
    memory: int = 0
    #: from which the teacher's class is the label of their background; None for a method that
    #: completes all labels itself, and without a memory
    memory_confidence: float | None = None
    #: of a method: its values of ``methods.COMMON``
    fuse: str = "none"
    freeze: str = "none"
    #: of a method that fuses: the one that does not but trains alike, where there is one
    trains_as: str = ""

    @property
    def fuses(self) -> bool:
        """Whether a step's model is fused with that of the step before."""
        return self.fuse != "none"


def read_config(*paths: Path | str) -> Config:
    """Read YAML files, later ones over earlier ones, and check the result."""
    config: Config = {}
    for path in paths:
        config = merged(config, _read(path))
    return checked(config)


def _read(path: Path | str) -> Config:
    try:
        content = read_yaml(path) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CissError(_no_configuration(path, error)) from None
    if not isinstance(content, dict):
        raise CissError(
            f"{path} is no configuration: it holds {content!r}, not settings such as seeds: [1]"
        )
    check_repeats(path)
    return content


def _no_configuration(path: Path | str, error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        # The problem is often noticed some lines after the one that has it.
        line = error.problem_mark.line + 1
        return f"{path} is no YAML: {error.problem} in line {line}; put right what is before it"
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())
    return f"cannot read the configuration {path}: {reason}; give a YAML file"


def check_repeats(path: Path | str) -> None:
    """Raise ``CissError`` where a YAML file sets a key twice, of which the first would be lost."""
    left = [(yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=YAML_LOADER), "")]
    seen: set[int] = set()
    while left:
        node, where = left.pop()
        if not isinstance(node, yaml.MappingNode) or id(node) in seen:
            continue
        seen.add(id(node))
        keys: set[str] = set()
        for key, value in node.value:
            name = f"{where}{key.value}"
            if name in keys and name != f"{where}<<":
                raise CissError(
                    f"{path}, line {key.start_mark.line + 1}: '{name}' is there a second time, "
                    "and the first would be lost; write both as one"
                )
            keys.add(name)
            left.append((value, f"{name}."))


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Config:
    """Lay ``above`` over ``below``: mappings are merged key by key, anything else is replaced.

    What only one of the two has is shared with it, not copied: thousands of settings are looked up
    when a workflow is planned.
    """
    result = dict(below)
    for key, value in above.items():
        own = result.get(key)
        if isinstance(value, Mapping) and isinstance(own, Mapping):
            value = merged(own, value)
        result[key] = value
    return result


def checked(config: Mapping[str, Any]) -> Config:
    """Return the configuration after checking all of it.

    Raises ``CissError`` with one sentence that names the key, its value and what is allowed:
    unknown keys, wrong types, values out of range, unknown kinds, methods, initialisations and
    their options, scenarios that do not fit their dataset, matrices of unknown datasets.
    """
    config = _structure_checked(_with_preset(config))
    config = _with_places(config)
    _check_variants(config)
    _check_processes(config["runtime"])
    for name, entry in config["datasets"].items():
        _check_dataset(config, name, entry)
    method_variants(config)
    for name, matrix in config["matrices"].items():
        _check_matrix(config, name, matrix)
    _check_experiments(config)
    for name in config.get("paper", []):
        if name not in config["matrices"]:
            raise CissError(f"paper: {unknown('matrix', name, config['matrices'])}")
    return config


def _with_places(config: Config) -> Config:
    """Return the configuration with folders that are written to as they begin all paths in them."""
    places: Config = {"results": _place("results", config["results"])}
    output = config.get("prediction", {}).get("output")
    if output:
        places["prediction"] = {"output": _place("prediction.output", output)}
    return merged(config, places)


def _place(name: str, folder: str) -> str:
    if re.search(UNUSABLE, folder):
        raise CissError(f"{name} is {folder!r}: {_UNUSABLE_PATH}; choose another folder")
    if folder.startswith("-"):
        raise CissError(
            f"{name} is {folder!r}, which programs take for an option; write its whole path"
        )
    return str(Path(folder).expanduser())


def _with_preset(config: Mapping[str, Any]) -> Config:
    name = config.get("preset", DEFAULT_PRESET)
    if name == DEFAULT_PRESET:
        return dict(config)
    files = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
    if str(name) not in files:
        raise CissError(f"config: {unknown('preset', name, [DEFAULT_PRESET, *files])}")
    preset = read_yaml(files[name])
    # A preset may speak of datasets that this configuration does not have.
    known = config.get("datasets", {})
    preset["datasets"] = {
        key: value for key, value in preset.get("datasets", {}).items() if key in known
    }
    _check_against_preset(config, preset, _read(_REPOSITORY / "config.yaml"), name, ())
    return merged(config, preset)


def _check_against_preset(
    config: Any, preset: Mapping[str, Any], defaults: Any, name: str, path: tuple[str, ...]
) -> None:
    """Refuse a preset whose value would silently replace one that the user chose."""
    for key, value in preset.items():
        mine = config.get(key) if isinstance(config, Mapping) else None
        default = defaults.get(key) if isinstance(defaults, Mapping) else None
        here = (*path, str(key))
        if isinstance(mine, str) and not isinstance(value, str):
            mine = read_value(mine)
        if isinstance(value, Mapping):
            _check_against_preset(mine, value, default, name, here)
        elif mine is not None and mine not in (default, value):
            raise CissError(
                f"config: {'.'.join(here)} is {mine!r}, but preset '{name}' sets {value!r}; leave "
                "one of them out"
            )


def settings(config: Config, dataset: str, scenario: Scenario | None = None) -> Config:
    """Return the sections ``SECTIONS`` for a dataset, and for the later steps of ``scenario``."""
    entry = dataset_entry(config, dataset)
    result = merged(_sections(config), _sections(entry))
    if scenario is not None:
        # An entry for 15-1 holds for its class orders and setups too, unless they have their own.
        own = entry.get("scenarios", {})
        plain = re.sub(r"(?<=\d)[a-z](?=-|$)|-[a-z]+$", "", scenario.name)
        for name in dict.fromkeys([plain, scenario.name]):
            result = merged(result, _sections(own.get(name, {})))
    return result


def preset_settings(config: Config, dataset: str, scenario: Scenario | None = None) -> Config:
    """Return what the configuration's preset sets of ``settings``: nothing for the default."""
    name = config.get("preset", DEFAULT_PRESET)
    if name == DEFAULT_PRESET:
        return {}
    preset = merged({"datasets": {dataset: {}}}, _read(PRESETS / f"{name}.yaml"))
    return settings(preset, dataset, scenario)


def dataset_entry(config: Config, name: str) -> Config:
    """Return what the configuration says of a dataset; ``CissError`` where it is unknown."""
    if name not in config["datasets"]:
        raise CissError(unknown("dataset", name, config["datasets"]))
    entry: Config = config["datasets"][name]
    return entry


def dataset(config: Config, name: str, order: str = "") -> Dataset:
    """Describe a configured dataset in a class order, without touching the disk."""
    entry = dataset_entry(config, name)
    root = entry.get("root", f"{config['results']}/data/{name}")
    return datasets.open_dataset(
        name,
        entry["kind"],
        Path(root).expanduser(),
        entry.get("classes"),
        order,
        background=entry.get("background"),
        values=entry.get("values"),
        void=entry.get("void"),
        files=entry.get("files", {}),
    )


def evaluated_images(config: Config, name: str) -> str:
    """Return which list of a split is evaluated: "test", or "val" where that is another one."""
    chosen = settings(config, name)["evaluation"].get("images", "test")
    return chosen if "test" in dataset(config, name).subsets else "test"


def scenario(config: Config, dataset_name: str, name: str) -> Scenario:
    """Read a scenario as an experiment's name spells it: ``15-1``, ``15-1a-disjoint``."""
    spelled, _, suffix = str(name).rpartition("-")
    if not spelled or not suffix.isalpha():
        spelled, suffix = str(name), ""
    setup = suffix or SETUPS[0]
    if setup not in SETUPS:
        raise CissError(f"scenario '{name}': {unknown('setup', setup, SETUPS)}")
    parsed = parse_scenario(spelled, dataset(config, dataset_name).n_classes, setup)
    if parsed.order:
        dataset(config, dataset_name, parsed.order)
    return parsed


def method_variant(section: Mapping[str, Any], name: str) -> Variant:
    """Resolve a method of an experiment's name; ``section`` is the ``methods`` section."""
    variant = _variant(section, name, "method", methods)
    _check_choices(f"methods.{name}", variant, methods)
    if not variant.fuses:
        return variant
    if variant.name == variant.kind:
        raise CissError(
            f"methods.{name}.fuse is '{variant.fuse}', which is for a variant: its first step is "
            f"that of {name} itself. Declare one, {name}-{variant.fuse}: {{method: {name}, fuse: "
            f"{variant.fuse}}}"
        )
    plain = _variant(section, variant.kind, "method", methods)
    alike = replace(plain, name=variant.name, fuse=variant.fuse) == variant
    return replace(variant, trains_as=plain.name) if alike else variant


def base_method(config: Config, dataset: str, name: str) -> Variant:
    """Return a method of its own objective as it trains step 0: with the options for this alone.

    ``name``: of the method, or of a variant. Step 0 is shared by all scenarios with its classes, so
    that it takes the options that hold for the data set.
    """
    variant = method_variant(settings(config, dataset).get("methods", {}), name)
    wanted = methods.describe(variant.kind).base_options
    return Variant(name, variant.kind, {option: variant.options[option] for option in wanted})


def base_run(config: Config, dataset: str, method: Variant, where: str) -> str:
    """Name the run of step 0 that an experiment with ``method`` starts from.

    That is the method's base objective; or the name of a variant that changes options of step 0.
    A method in closed form solves a step 0 of its own on that of its objective: ``bce_cfs``.
    Raises ``CissError``, for the scenario ``where``, if these are set for it alone.
    """
    described = methods.describe(method.kind)
    if not described.base_options:
        return described.base_objective
    declared = settings(config, dataset).get("methods", {})
    own = base_method(config, dataset, method.name if method.name in declared else method.kind)
    for option, value in own.options.items():
        if method.options[option] != value:
            raise CissError(
                f"methods.{method.name}.{option} is {method.options[option]!r} for scenario "
                f"{where} and {value!r} for the data set, but step 0 is shared by its scenarios; "
                f"set it under datasets.{dataset}.methods"
            )
    plain = base_method(config, dataset, method.kind)
    is_plain = own.options == plain.options
    if described.closed_form:
        return f"{described.base_objective}_{method.kind if is_plain else method.name}"
    return described.base_objective if is_plain else method.name


def method_variants(config: Config) -> dict[str, Variant]:
    """Resolve each method and variant that the configuration names at any level.

    Files are named after the variant alone, and what a step writes depends on its kind and on
    whether it fuses: these are the same at all levels, its options are those of the first. Raises
    ``CissError`` where two data sets or scenarios mean different ones by one name.
    """
    found = {name: (Variant(name, name, {}), "built-in") for name in methods.names()}
    for where, section in _method_sections(config):
        for name in section:
            variant = method_variant(section, name)
            other, elsewhere = found.setdefault(name, (variant, where))
            for ours, theirs in ((variant.kind, other.kind), (variant.fuse, other.fuse)):
                if ours != theirs:
                    raise CissError(
                        f"{where}.{name} is '{ours}', but '{theirs}' in {elsewhere}; a variant is "
                        "of one kind for all data sets, give one of the two another name"
                    )
    return {name: variant for name, (variant, _) in found.items()}


def _method_sections(config: Config) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield where methods are set, and what holds there."""
    yield "methods", config.get("methods", {})
    for name, entry in config["datasets"].items():
        yield f"datasets.{name}.methods", settings(config, name).get("methods", {})
        for spelled in entry.get("scenarios", {}):
            within = settings(config, name, scenario(config, name, spelled))
            yield f"datasets.{name}.scenarios.{spelled}.methods", within.get("methods", {})


def initialisation_variant(section: Mapping[str, Any], name: str) -> Variant:
    """Resolve an initialisation of an experiment's name."""
    variant = _variant(section, name, "initialisation", initialisations)
    _check_initialisation(variant)
    return variant


def _variant(section: Mapping[str, Any], name: str, what: str, registry: Any) -> Variant:
    own = dict(section.get(name, {}))
    kind = own.pop(what, name)
    if kind != name and name in registry.names():
        raise CissError(
            f"{what}s.{name}: '{name}' is built-in and cannot stand for '{kind}'; give the variant "
            "another name"
        )
    if kind not in registry.names():
        where = f"{what}s.{name}: " if name in section else ""
        declared = [other for other in _declared(section, registry) if other != kind]
        raise CissError(where + unknown(what, kind, [*registry.names(), *declared]))
    # A variant starts from what the configuration says of the method it varies.
    below = {} if kind == name else section.get(kind, {})
    defaults = registry.describe(kind).defaults
    options = {**defaults, **below, **own}
    options.pop(what, None)
    kept = _memory(options, name, kind) if what == "method" else {}
    words = methods.COMMON if registry is methods else {}
    common = {key: options.pop(key, choices[0]) for key, choices in words.items()}
    for key, chosen in common.items():
        if chosen not in words[key]:
            raise CissError(f"{what}s.{name}.{key}: {unknown('value', str(chosen), words[key])}")
    for option, value in options.items():
        if option not in defaults:
            raise CissError(
                f"{what}s.{name}: " + unknown(f"option of {what} {kind}", option, defaults)
            )
        if isinstance(value, str) and not isinstance(defaults[option], str):
            # `--config` gives nested values as text.
            options[option] = read_value(value)
        check_value(f"{what}s.{name}.{option}", options[option], defaults[option])
        if isinstance(defaults[option], float):
            # 10 and 10.0 are one setting: going from one to the other reruns nothing.
            options[option] = float(options[option])
    if registry is methods:
        _check_common(name, kind, common)
    return Variant(name, kind, options, **kept, **common)


def _check_common(name: str, kind: str, common: Mapping[str, str]) -> None:
    """Refuse a setting of every method where there is nothing that it could be about."""
    described = methods.describe(kind)
    if described.closed_form:
        does = "trains nothing that this could change"
    elif described.only_adds:
        does = "leaves all of the model before as it is, so that this would change nothing"
    else:
        return
    for key, choices in methods.COMMON.items():
        if common[key] != choices[0]:
            raise CissError(
                f"methods.{name}.{key} is '{common[key]}', but {kind} {does}; leave it out"
            )


def _memory(options: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    """Take out and check what every method has beside its options: its exemplars."""
    images, confidence = (
        read_value(value) if isinstance(value, str) else value
        for value in (options.pop("memory", 0), options.pop("memory_confidence", None))
    )
    where = f"methods.{name}.memory is {images!r}"
    if type(images) is not int or images < 0:
        raise CissError(f"{where}; give a whole number of images, 0 for no memory")
    if images and methods.describe(kind).closed_form:
        raise CissError(
            f"{where}, but {kind} keeps sums of all pixels and trains on no image again; leave it "
            "out"
        )
    where = f"methods.{name}.memory_confidence is {confidence!r}"
    completes = methods.describe(kind).completes_labels
    if confidence is None:
        confidence = MEMORY_CONFIDENCE
    elif completes:
        raise CissError(f"{where}, but {kind} completes the labels of all images; leave it out")
    if type(confidence) not in (int, float) or not 0 <= confidence <= 1:
        raise CissError(f"{where}; give a probability, from 0 to 1")
    used = images and not completes
    return {"memory": images, "memory_confidence": float(confidence) if used else None}


def _check_choices(where: str, variant: Variant, registry: Any) -> None:
    for option, choices in registry.describe(variant.kind).choices.items():
        if variant.options[option] not in choices:
            raise CissError(
                f"{where}.{option}: {unknown('value', variant.options[option], choices)}"
            )


def _check_initialisation(variant: Variant) -> None:
    """Check what only ``ciss.transfer`` would notice, after step 0 was trained."""
    where = f"initialisations.{variant.name}"
    _check_choices(where, variant, initialisations)
    fraction = variant.options.get("fraction")
    if fraction is not None and (fraction == 0 or (fraction > 1 and fraction % 1)):
        raise CissError(
            f"{where}.fraction is {fraction}; give a share of the channels above 0 and up to 1, or "
            "a whole number of channels"
        )


def _declared(section: Mapping[str, Any], registry: Any) -> list[str]:
    return [name for name in section if name not in registry.names()]


def _sections(entry: Mapping[str, Any]) -> Config:
    return {name: entry[name] for name in SECTIONS if name in entry}


def _check_dataset(config: Config, name: str, entry: Mapping[str, Any]) -> None:
    if entry["kind"] not in datasets.kinds():
        kinds = unknown("dataset kind", entry["kind"], datasets.kinds())
        raise CissError(f"datasets.{name}.kind: {kinds}")
    if "root" not in entry and entry["kind"] != "shapes":
        raise CissError(f"datasets.{name}.root is missing: give the folder that holds the dataset")
    if "generate" in entry and entry["kind"] != "shapes":
        raise CissError(f"datasets.{name}.generate is for kind shapes, not for {entry['kind']}")
    if "generate" in entry and "root" in entry:
        raise CissError(
            f"datasets.{name} has root and generate, but images are generated below results; take "
            "one of the two out"
        )
    missing = [key for key in GENERATED if key not in entry.get("generate", GENERATED)]
    if missing:
        raise CissError(f"datasets.{name}.generate: the key '{missing[0]}' is missing")
    opened = dataset(config, name)
    here = f"datasets.{name}."
    within = settings(config, name)
    _check_weights(within["model"], name)
    _check_batch(config, within, f"dataset '{name}'")
    _check_variants(within, here, config)
    for spelled in entry.get("scenarios", {}):
        try:
            parsed = scenario(config, name, spelled)
        except CissError as error:
            raise CissError(f"{here}scenarios: {error}") from None
        if parsed.increment == 0:
            raise CissError(
                f"{here}scenarios.{spelled}: '{spelled}' has no step after step 0, to which "
                f"settings of a scenario could apply; put them under datasets.{name}"
            )
        in_scenario = settings(config, name, parsed)
        _check_variants(in_scenario, f"{here}scenarios.{spelled}.", config)
        _check_batch(config, in_scenario, f"dataset '{name}', scenario {spelled}")
        if "base" in entry["scenarios"][spelled].get("recipe", {}):
            raise CissError(
                f"{here}scenarios.{spelled}.recipe.base: step 0 is shared by all scenarios with "
                f"the same {parsed.base} base classes of {opened.n_classes}; set it under "
                f"datasets.{name}.recipe.base"
            )


def processes(runtime: Mapping[str, Any]) -> int:
    """Processes of a job that runs the network, as far as the configuration decides it."""
    for key in ("processes", "gpus"):
        if runtime.get(key, "auto") != "auto":
            return max(int(runtime[key]), 1)
    return 1


def _check_processes(runtime: Mapping[str, Any]) -> None:
    if runtime.get("processes", "auto") != "auto" and runtime.get("device") != "cpu":
        raise CissError(
            f"config: runtime.processes is {runtime['processes']}, which is for a CPU; leave it at "
            "auto for one process on each of runtime.gpus GPUs, or set runtime.device to cpu"
        )
    if processes(runtime) > 1 and str(runtime.get("device")).startswith("cuda:"):
        raise CissError(
            f"config: runtime.device is '{runtime['device']}', one GPU, but runtime.gpus asks for "
            f"{processes(runtime)}; set runtime.device to cuda or auto"
        )


def _check_batch(config: Mapping[str, Any], within: Mapping[str, Any], where: str) -> None:
    """Check that a batch can be split and shared, and that its batch norm can be synchronised."""
    batch, parts = within["recipe"]["batch"], within["recipe"].get("accumulate", 1)
    if batch % parts or batch // parts < 2:
        raise CissError(
            f"recipe.accumulate of {where} is {parts}, into which recipe.batch {batch} cannot be "
            "split equally, with two images or more in each part"
        )
    count = processes(config["runtime"])
    if batch // parts < count:
        raise CissError(
            f"recipe.batch of {where} gives {batch // parts} images at a time, which {count} "
            "processes cannot share; set runtime.gpus lower"
        )
    if count > 1 and within["model"]["norm"] == "iabn":
        raise CissError(
            f"model.norm of {where} is 'iabn', whose batch norm is not synchronised over {count} "
            "GPUs; set it to 'abn' (same checkpoint, same values) or runtime.gpus to 1"
        )


def _check_weights(model: Mapping[str, Any], dataset_name: str) -> None:
    where = f"model.weights of dataset '{dataset_name}' is '{model['weights']}'"
    if model["weights"] == "published" and model["backbone"] != "resnet101":
        raise CissError(
            f"{where}, but only resnet101 has published weights, not {model['backbone']}; choose "
            "torchvision (with norm: bn), scratch or the path of a file"
        )
    if model["weights"] == "torchvision" and model["norm"] != "bn":
        raise CissError(
            f"{where}, whose scales have signs that norm '{model['norm']}' cannot express; set "
            "model.norm to bn"
        )
    if re.search(UNUSABLE, model["weights"]):
        raise CissError(f"{where}: {_UNUSABLE_PATH}; rename the file or its folder")


def _check_variants(
    sections: Mapping[str, Any], where: str = "", above: Mapping[str, Any] | None = None
) -> None:
    """Check methods and initialisations; those that ``above`` has too must be of the same kind."""
    for section, resolve in _RESOLVERS.items():
        entries, everywhere = (part.get(section, {}) for part in (sections, above or {}))
        # Variants last: a wrong option that they inherit is an error of what they vary.
        for name in sorted(entries, key=lambda name: section.removesuffix("s") in entries[name]):
            try:
                if name == PARTIAL.removeprefix("_"):
                    raise CissError(f"{section}.{name}: {_PARTIAL_IS_TAKEN}")
                kind = resolve(entries, name).kind
                if name in everywhere and resolve(everywhere, name).kind != kind:
                    raise CissError(
                        f"{section}.{name} is '{kind}' here and "
                        f"'{resolve(everywhere, name).kind}' elsewhere; a variant is of one kind, "
                        "give this one another name"
                    )
            except CissError as error:
                raise CissError(f"{where}{error}") from None


_PARTIAL_IS_TAKEN = f"NAME{PARTIAL} asks for what is there of NAME by now; choose another name"
_RESOLVERS = {"methods": method_variant, "initialisations": initialisation_variant}


def _check_matrix(config: Config, name: str, matrix: Mapping[str, Any]) -> None:
    # Here and not at the top: experiments are made of configurations.
    from ciss.experiments import parse_experiment

    if name.endswith(PARTIAL):
        raise CissError(f"matrices.{name}: {_PARTIAL_IS_TAKEN}")
    if matrix["dataset"] not in config["datasets"]:
        raise CissError(
            f"matrices.{name}.{unknown('dataset', matrix['dataset'], config['datasets'])}"
        )
    listed: set[str] = set()
    for spelled in matrix["scenarios"]:
        for run in matrix["runs"]:
            try:
                experiment = parse_experiment(config, f"{matrix['dataset']}_{spelled}_{run}")
            except CissError as error:
                raise CissError(f"matrices.{name}: {error}") from None
            if experiment.name in listed:
                raise CissError(
                    f"matrices.{name} lists {experiment.name} twice: scenario '{spelled}' with "
                    f"run '{run}' is another spelling of it; take one out"
                )
            listed.add(experiment.name)


def _check_experiments(config: Config) -> None:
    from ciss.experiments import parse_experiment

    for name in config.get("experiments", []):
        try:
            parse_experiment(config, name)
        except CissError as error:
            raise CissError(f"experiments: {error}") from None


def _structure_checked(config: Mapping[str, Any]) -> Config:
    import jsonschema

    schema = read_yaml(SCHEMA)
    # JSON takes 2.0 for an integer, the scripts do not.
    strict = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: type(value) is int
    )
    checker = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=strict)
    validator = checker(schema)
    result = copy.deepcopy(dict(config))
    for _ in range(100):
        errors = sorted(validator.iter_errors(result), key=lambda error: list(map(str, error.path)))
        if not errors:
            _check_numbers(result, ())
            return result
        if not _reread_string(result, errors[0]):
            raise CissError(_sentence(errors[0]))
    raise CissError("the configuration has too many values given as text; write them unquoted")


def _reread_string(config: Config, error: Any) -> bool:
    """Turn text into the number it spells: ``--config`` gives nested values as text."""
    if error.validator not in ("type", "enum", "pattern") or not isinstance(error.instance, str):
        return False
    value = read_value(error.instance)
    if isinstance(value, str) or value is None or not error.path:
        return False
    parent: Any = config
    *keys, last = error.path
    for key in keys:
        parent = parent[key]
    parent[last] = value
    return True


def _check_numbers(value: object, path: tuple[str, ...]) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_numbers(inner, (*path, str(key)))
    elif isinstance(value, float) and (value != value or value in (float("inf"), -float("inf"))):
        raise CissError(f"config: {'.'.join(path)} is {value!r}; give a finite number")


#: what a schema's types are to somebody who writes YAML
_TYPES = {
    "object": "a mapping ({key: value, …})",
    "array": "a list ([value, …])",
    "string": "text",
    "integer": "a whole number (integer)",
    "number": "a number",
    "boolean": "true or false (boolean)",
}


def _sentence(error: Any) -> str:
    """Say what a schema error means, in one sentence."""
    key = ".".join(str(part) for part in error.absolute_path)
    where = f"config: {key}" if key else "config"
    value, rule = error.instance, error.validator_value
    match error.validator:
        case "additionalProperties":
            known = error.schema.get("properties", {})
            extra = next(name for name in value if name not in known)
            return f"{where}: {unknown('key', extra, known)}"
        case "required":
            missing = next(name for name in rule if name not in value)
            return f"{where}: the key '{missing}' is missing; add it"
        case "type":
            wanted = [rule] if isinstance(rule, str) else rule
            return f"{where} is {value!r}; give {' or '.join(_TYPES[name] for name in wanted)}"
        case "enum":
            return f"{where}: " + unknown("value", value, rule)
        case "pattern" if "propertyNames" in error.absolute_schema_path:
            allowed = error.schema.get("description", rule)
            return f"{where}: the name {value!r} is not allowed; a name has {allowed}"
        case "pattern":
            return f"{where} is {value!r}; allowed: {error.schema.get('description', rule)}"
        case "minItems":
            return f"{where} is {value!r}; list at least {rule}"
        case "uniqueItems":
            return f"{where} is {value!r}; an entry is there twice, take one out"
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            words = {
                "minimum": "at least",
                "exclusiveMinimum": "more than",
                "maximum": "at most",
                "exclusiveMaximum": "less than",
            }
            return f"{where} is {value!r}; it must be {words[error.validator]} {rule}"
    return f"{where}: {error.message}"
