# Parameters of rules: what changes their result, and how they run (see the top of common.smk).


def dataset_flags(dataset, order=""):
    """Settings that say which classes there are, and which mask values they have."""
    entry = ciss.config.dataset_entry(CONFIG, dataset)
    values = entry.get("values")
    void = entry.get("void")
    return to_flags(
        {
            "dataset": dataset,
            "kind": entry["kind"],
            "order": order or None,
            "classes": entry.get("classes"),
            "values": None if values is None else value_flags(values),
            "void": [void] if isinstance(void, int) else void,
        }
    )


def label_flags(dataset, order):
    """Settings that say what every pixel's label is: index and splits do not ask for the background."""
    entry = ciss.config.dataset_entry(CONFIG, dataset)
    return dataset_flags(dataset, order) + to_flags(
        {"background": entry.get("background")}
    )


def labels_of(wildcards):
    return label_flags(wildcards.dataset, scenario_of(wildcards).order)


def index_flags(wildcards):
    files = ciss.config.dataset_entry(CONFIG, wildcards.dataset).get("files")
    spelled = None if files is None else json.dumps(files, sort_keys=True)
    return dataset_flags(wildcards.dataset) + to_flags({"files": spelled})


def scenario_flags(wildcards):
    scenario = scenario_of(wildcards)
    spelled = (
        f"{scenario.base}-{scenario.increment}" if scenario.increment else "offline"
    )
    return dataset_flags(wildcards.dataset, scenario.order) + to_flags(
        {"scenario": spelled, "setup": scenario.setup}
    )


def split_flags(wildcards):
    last = scenario_of(wildcards).n_steps
    steps = [0] if is_base(wildcards.track) else range(1, last)
    return scenario_flags(wildcards) + to_flags({"steps": list(steps)})


def network_flags(wildcards):
    model = settings_of(wildcards)["model"]
    return to_flags({name: value for name, value in model.items() if name != "weights"})


def preallocation_flags(wildcards):
    """How many classes come after step 0, for the objective that gives them a classifier there."""
    if wildcards.run != methods.PREALLOCATED:
        return []
    scenario = scenario_of(wildcards)
    later = scenario.n_classes - scenario.base
    return to_flags({"preallocated": later or None})


def solved_base_flags(wildcards):
    """The method of a step 0 in closed form, and those of its options that enter there."""
    name = wildcards.run.partition("_")[2]
    method = ciss.config.base_method(CONFIG, wildcards.dataset, name)
    return to_flags({"method": method.kind}) + option_flags(method.options)


#: settings of a recipe that need not be whole numbers
RECIPE_FRACTIONS = ("lr", "momentum", "power", "weight_decay")


def training_settings(recipe):
    """Flags of a ciss.training.Recipe."""
    # 1, the default, splits nothing: results from before there was this setting stay valid.
    # 1 and 1.0 are one setting: going from one to the other reruns nothing.
    return to_flags(
        {
            name: float(value) if name in RECIPE_FRACTIONS else value
            for name, value in recipe.items()
            if (name, value) != ("accumulate", 1)
        }
    )


def recipe_flags(wildcards):
    """Settings of the training loop: those of step 0 or of the later steps."""
    recipe = dict(settings_of(wildcards)["recipe"])
    phases = {"base": recipe.pop("base"), "later": recipe.pop("later")}
    recipe |= phases["base" if wildcards.step == "0" else "later"]
    return training_settings(recipe)


@cache
def base_method_at(dataset, run):
    """The method that trains a run of step 0 with losses of its own, or None."""
    if run not in OWN_BASES:
        return None
    return ciss.config.base_method(CONFIG, dataset, run)


def base_method_flags(wildcards):
    """What step 0 takes of such a method: its name, where the run is called otherwise, and options."""
    method = base_method_at(wildcards.dataset, wildcards.run)
    if method is None:
        return []
    # Of an argument that is given twice, the last one counts.
    kind = {"method": method.kind} if method.kind != method.name else {}
    return to_flags(kind) + method_option_flags(method)


def method_option_flags(method):
    """Options of a method; of a folder of maps it is the content that changes results."""
    options = dict(method.options)
    if saliency_folder(method) is not None:
        options["saliency"] = "folder"
    threshold = "saliency_threshold"
    if threshold in options and options["saliency"] != ciss.datasets.base.BUILTIN:
        # It is of the built-in maps: with others, whatever it is set to is as the default.
        options[threshold] = methods.describe(method.kind).defaults[threshold]
    return option_flags(options)


def saliency_folder(method):
    """The folder of saliency maps that a method's options name, or None."""
    source = method.options.get("saliency", ciss.datasets.base.NONE)
    return None if source in ciss.datasets.base.SALIENCY else Path(source).expanduser()


def trained_method(wildcards):
    """The method of a training job; None for a step 0 of an objective that methods share."""
    if wildcards.step == "0":
        return base_method_at(wildcards.dataset, wildcards.run)
    return experiment_of(wildcards).method


def freeze_flags(wildcards):
    """What a method leaves as it is beside what its own code freezes; mostly nothing."""
    chosen = experiment_of(wildcards).method.freeze
    return to_flags({"freeze": None if chosen == "none" else chosen})


def memory_flags(wildcards):
    """How the labels of exemplars are completed, where there are any and the method does not do it."""
    confidence = experiment_of(wildcards).method.memory_confidence
    return to_flags({"memory_confidence": confidence})


@cache
def initialisation_at(dataset, scenario, init):
    """The initialisation that the wildcards of a pre-tuning name, as it holds for the scenario."""
    section = settings_at(dataset, scenario)["initialisations"]
    try:
        return ciss.config.initialisation_variant(section, init)
    except CissError as error:
        stop(error)


def pretuning_flags(wildcards):
    """Settings of an initialisation that is learned: its options are most of the recipe."""
    recipe = dict(settings_at(wildcards.dataset, wildcards.scenario)["recipe"])
    for phase in ("base", "later"):
        del recipe[phase]
    chosen = initialisation_at(wildcards.dataset, wildcards.scenario, wildcards.init)
    options = dict(chosen.options)
    recipe |= {
        name: options.pop(name) for name in ciss.initialisations.PRETUNING_OPTIONS
    }
    return (
        to_flags({"initialisation": chosen.kind})
        + training_settings(recipe)
        + option_flags(options)
    )


def attribution_flags(wildcards):
    chosen = settings_at(wildcards.dataset, wildcards.scenario)
    flags = {
        "method": chosen["attribution"]["method"],
        "crop": chosen["recipe"]["crop"],
    }
    # The closed form has no steps: changing their number must not rerun it.
    if flags["method"] != "closed_form":
        flags["n_steps"] = chosen["attribution"]["steps"]
    return to_flags(flags)


def channel_flags(wildcards):
    """How a run's initialisation chooses channels; its other options come after the choice."""
    options = experiment_drawn(wildcards)[0].init.options
    return to_flags(
        {name: options[name] for name in ciss.initialisations.CHANNEL_OPTIONS}
    )


def run_flags(wildcards):
    """Each experiment as the scripts take it; paths would make the command too long."""
    _, seeds = report_at(wildcards.report)
    flags = []
    for e in report_experiments(wildcards):
        init = e.init.name if "_" in e.run else "-"
        counts = ",".join(map(str, e.scenario.classes_per_step))
        step_0 = f"{e.scenario.track(0)}/{e.run_at(0)}"
        flags += [
            "--run",
            e.dataset,
            e.scenario.name,
            e.method.name,
            init,
            counts,
            step_0,
        ]
    flags += to_flags({"seeds": seeds, "trained_as": trained_as(wildcards) or None})
    return flags + (["--partial"] if is_partial(wildcards.report) else [])


def trained_as(wildcards):
    """Runs of a report that fuse what another run trained in step 1, and which that is."""
    return sorted(
        {
            f"{e.run}={e.trained_run_at(1)}"
            for e in report_experiments(wildcards)
            if e.method.trains_as and e.scenario.n_steps > 1
        }
    )


def published_flags(wildcards):
    """What is published of a report's experiments, and which were not trained as published."""
    beside, base_steps, departures, otherwise = {}, {}, {}, {}
    for e in report_experiments(wildcards):
        key, why, left_out, said = ciss.published.match(CONFIG, e)
        if key and (why or left_out):
            departures[e.name] = "; ".join(why or left_out)
        if key and not why:
            beside[e.name] = key
            if said:
                otherwise[e.name] = said
        key, why, *_ = ciss.published.match_base(CONFIG, e)
        if key and not why:
            base_steps[f"{e.dataset}/{e.scenario.track(0)}/{e.run_at(0)}"] = key
    flags = {"published": beside, "base_step": base_steps, "departure": departures}
    flags |= {"otherwise": otherwise}
    return to_flags(
        {
            name: [f"{ours}={theirs}" for ours, theirs in found.items()]
            for name, found in flags.items()
            if found
        }
    )


def published_version(wildcards):
    """A setting of the tables that show published numbers: other numbers, other tables."""
    return ciss.published.version() if published_flags(wildcards) else ""


def found_files(wildcards):
    """A setting of a partial report's tables: other files than last time, other tables."""
    if not is_partial(wildcards.report):
        return ""
    found = [
        (path, Path(path).stat().st_mtime_ns)
        for path in report_confusions(wildcards.report)
        if Path(path).is_file()
    ]
    return hashlib.sha256(repr(found).encode()).hexdigest()


def shown_configuration(report):
    """The part of the configuration that a report is about, as JSON."""
    names = {e.dataset for e in report_at(report)[0]}
    parts = {name: value for name, value in CONFIG.items() if name != "paper"}
    parts["datasets"] = {name: CONFIG["datasets"][name] for name in sorted(names)}
    parts["matrices"] = {n: m for n, m in CONFIG["matrices"].items() if n == report}
    return json.dumps(parts)


def root_flags(wildcards, threads):
    check_queued_paths()
    return to_flags({"root": dataset_at(wildcards.dataset).root})


def index_runtime_flags(wildcards, threads):
    """Where the data lie, and whether they may be a part of a release: no other index comes of it."""
    entry = ciss.config.dataset_entry(CONFIG, wildcards.dataset)
    subset = ["--subset"] if entry.get("subset", False) else []
    return root_flags(wildcards, threads) + subset


def runtime_flags(wildcards, threads, resources):
    """How a job that runs the network does so, and where its data lie."""
    return root_flags(wildcards, threads) + device_flags(wildcards, threads, resources)


def device_flags(wildcards, threads, resources):
    """How a job that runs the network does so."""
    runtime = CONFIG["runtime"]
    minutes = resources.get("runtime")
    return to_flags(
        {
            "device": runtime["device"],
            "workers": runtime["workers"],
            "threads": threads,
            # The limit that a cluster's profile sets; a dry run does not always know it.
            "minutes": minutes if isinstance(minutes, int) else None,
            "deterministic": runtime.get("deterministic", False),
        }
    )


def shared_runtime_flags(wildcards, threads, resources):
    """The same for a job whose work several processes may share."""
    return runtime_flags(wildcards, threads, resources) + to_flags(
        {"processes": processes(resources)}
    )


def processes(resources):
    """One for each GPU that a job has, unless the configuration has its own number."""
    check_shared_gpus()
    chosen = CONFIG["runtime"].get("processes", "auto")
    gpus = resources.get("gpu", 0)
    wanted = CONFIG["runtime"]["gpus"]
    if wanted != "auto" and wanted > 1 and gpus != wanted:
        stop(
            f"runtime.gpus is {wanted}, but the profile or the command line gives the job "
            f"gpu={gpus}; set the number there and leave runtime.gpus at auto, or the other way "
            "round"
        )
    return max(gpus, 1) if chosen == "auto" else chosen


def queued():
    """Whether jobs are submitted to a cluster; known once rules are read."""
    # A dry run has an executor of its own.
    return is_submitted() if workflow.dryrun else not workflow.local_exec


@cache
def check_queued_paths():
    """Stop where Snakemake would submit a command that the shell reads otherwise."""
    if not workflow.is_main_process or not queued():
        return
    for what, path in {
        "results": RESULTS,
        "the folder where Snakemake was started": os.getcwd(),
        "the folder of the Snakefile": str(workflow.basedir),
    }.items():
        if re.search(r"""['"$`\\]""", path):
            stop(
                f"{what} is '{path}', but what Snakemake submits to a cluster does not keep quotes, "
                "$, ` and \\ in a path; choose one without them (spaces and the like are fine)"
            )


@cache
def check_shared_gpus():
    """Stop where jobs of this machine would run at once on the same GPU: each takes the first."""
    if queued() or not workflow.is_main_process:
        return
    given, wanted = workflow.global_resources.get("gpu"), most_gpus()
    if given is not None and given.value > wanted > 0:
        stop(
            f"jobs may use gpu={given.value} together (--resources or a profile), but a job uses "
            f"{wanted} and takes the first that it sees, so that several would share it; set "
            f"runtime.gpus to {given.value} for jobs that use all of them, or leave gpu at {wanted} "
            "and start Snakemake twice, with CUDA_VISIBLE_DEVICES=0 and =1 and a folder of results "
            "each"
        )


def training_flags(wildcards, threads, resources):
    """The same for a training job, whose method may need saliency maps."""
    method = trained_method(wildcards)
    maps = method and saliency_folder(method)
    return reading_flags(wildcards, threads, resources) + to_flags(
        {"saliency_maps": maps}
    )


def reading_flags(wildcards, threads, resources):
    """The same for a job that reads training images many times, and may keep them decoded."""
    flags = shared_runtime_flags(wildcards, threads, resources)
    folder = CONFIG["runtime"].get("cache", "none")
    if folder == "none":
        return flags
    index = at(paths.INDEX.format(dataset=wildcards.dataset))
    return flags + to_flags({"cache": folder, "index": index})


@cache
def state_at(name):
    """What the files of a data set are: their fingerprint, or why there is none.

    Without the data a dry run still plans; anything else stops here, before any work.
    """
    dataset = dataset_at(name)
    cache_file = Path(at(paths.FINGERPRINT.format(dataset=dataset.name)))
    try:
        if is_generated(dataset.name):
            return ciss.fingerprint.of_generated(dataset, cache_file)
        return ciss.fingerprint.fingerprint(dataset, cache_file)
    except CissError as error:
        known = ciss.fingerprint.last_known(cache_file)
        if known is not None:
            warn_once(
                f"Warning: {error}\nWhat was made of it before is taken to be valid still."
            )
            return known
        if only_looks():
            warn_once(
                f"Warning: {error}\nThis is a dry run; a real one stops with this error."
            )
            return "missing"
        stop(error)


def dataset_state(wildcards):
    """A setting of every job that reads images or masks: other files, another result.

    The index alone would not do: an index or split that comes out as before counts as unchanged,
    for any target after the first that notices the change.
    """
    return state_at(wildcards.dataset)


@cache
def maps_state_at(dataset, method, folder):
    """What the saliency maps in a folder are; stops where there is no such folder."""
    cache_file = Path(at(paths.MAPS_FINGERPRINT.format(dataset=dataset, method=method)))
    try:
        return ciss.fingerprint.of_folder(folder, ".png", cache_file)
    except OSError as error:
        known = ciss.fingerprint.last_known(cache_file)
        said = (
            f"methods.{method}.saliency of dataset '{dataset}' is '{folder}', which cannot be read "
            f"({error.strerror}); give {', '.join(ciss.datasets.base.SALIENCY)} or a folder with a PNG for "
            "each training image"
        )
        if known is None and not only_looks():
            stop(said)
        warn_once(f"Warning: {said}")
        return known or "missing"


def training_data_state(wildcards):
    """The same of a training job, which may look at saliency maps too."""
    state, method = dataset_state(wildcards), trained_method(wildcards)
    maps = method and saliency_folder(method)
    if not maps:
        return state
    return f"{state} {maps_state_at(wildcards.dataset, method.name, maps)}"


def progress_file(wildcards, output):
    """Where a training keeps its progress: beside its outputs, and none of them."""
    return str(Path(output.model).with_name(paths.PROGRESS))


def pretuning_progress_file(wildcards, output):
    """The same for classifiers, of which several may be learned beside one model."""
    made = Path(output[0])
    return str(made.with_name(paths.PRETUNING_PROGRESS.format(name=made.stem)))


def sources_flags():
    """Where archives are kept and come from; nothing here changes a result."""
    chosen = CONFIG["prepare"]
    return to_flags(
        {
            "archives": Path(chosen["archives"]).expanduser(),
            "mirror": chosen["mirror"] or None,
            "checksums": [f"{name}={sha}" for name, sha in chosen["checksums"].items()]
            or None,
        }
    )


def sources_of_weights(wildcards, threads):
    """The same for a rule with outputs, which another mirror must not run again."""
    return sources_flags()


def entry_flags(names):
    """The data sets as the script takes them."""
    parts = [name for name in names if CONFIG["datasets"][name].get("subset")]
    return [
        word
        for name in names
        for word in (
            "--entry",
            name,
            dataset_at(name).kind,
            path_argument(dataset_at(name).root),
        )
    ] + to_flags({"subsets": parts or None})


# --- Of a finished model, for predict.smk


def given_path(name):
    return Path(CONFIG[name]).expanduser()


def check_given(target, names):
    """Stop where a target is asked for without the paths that it needs."""
    if target not in requested_targets():
        return
    for name in names:
        if not CONFIG[name]:
            words = " ".join(f"{other}=…" for other in names)
            stop(
                f"{target} needs {name}: snakemake {target} --config {words} (docs/predict.md)"
            )
        if not given_path(name).exists():
            stop(f"{name} is '{CONFIG[name]}', which does not exist")


def readable(name):
    """A name as a part of a path: without braces, which are of wildcards, and control characters."""
    return re.sub(ciss.config.UNUSABLE, "_", name)


def model_name():
    """What the checkpoint is called in the paths of what is made with it."""
    path = given_path("checkpoint").absolute()
    *parts, seed, step = path.parts[-6:-1]
    # Below a results folder its path says what it is: dataset, track, run, seed and step.
    inside = len(parts) == 3 and seed.startswith("seed") and step.startswith("step")
    return readable("_".join([*parts, seed, step]) if inside else path.stem)


def prediction_folder():
    own = CONFIG["prediction"]["output"]
    if own:
        return own
    images = given_path("images").absolute()
    return at(f"predictions/{readable(images.name)}/{model_name()}")


def state_of(path, names):
    """A setting: sizes and modification times of files below a folder."""
    stats = ciss.fingerprint.stat_files(path, set(names))
    return hashlib.sha256(repr(sorted(stats.items())).encode()).hexdigest()


def checkpoint_state(wildcards):
    path = given_path("checkpoint").absolute()
    return state_of(path.parent, [path.name])


def images_state(wildcards):
    path = given_path("images").absolute()
    try:
        names, _ = photos.find_images(path, Path(prediction_folder()))
    except CissError as error:
        stop(error)
    return state_of(path if path.is_dir() else path.parent, names)
