"""Short training runs of every method, step after step, in float32 and in float64."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ciss import methods, metrics, plop, transfer
from ciss.attribution import Attribution
from ciss.initialisations import describe as describe_initialisation
from ciss.loading import to_network_input
from ciss.methods.base import Method
from ciss.models import SegmentationNetwork, widened
from ciss.regularisers import Regularised, trainable, unflatten
from ciss.training import Recipe, Training

from .case import Array, Case, UnknownCaseError
from .losses import compat_options, named_parts
from .model import loaded, network_for

INPUTS = {
    r"images_step\d+": "inputs",
    r"labels_step\d+(_test)?": "inputs",
    r"order_step\d+": "rows of the batches, inputs",
    "init/.+": "the network before step 0, input",
    r"fresh/cls\.\d+\.(weight|bias)": "new classifiers before their initialisation, inputs",
    "mask": "channel mask of the AWT runs, input",
}

#: The stored float32 values are this many times the noise that their case states (or less) from
#: a float64 run. Ours has to be as near: in float64 too, as rounding grows so fast in some cases
#: that two float32 runs of the same code differ by fifty times that figure, ...
NOISE_FACTOR = 2.0
#: ... single tensors' gradients, for which no figure is given, by more than their groups', ...
NOISE_FACTOR_TENSORS = 20.0
#: ... and nothing by less than float32's own resolution allows.
NOISE_FLOOR = 2e-6
#: Our float32 run, the one that trains, has to stay near as well.
NOISE_FACTOR_F32 = 100.0
NOISE_FLOOR_F32 = 1e-3
#: Norms of the statistics of EWC, PI and RW: a tensor's noise is known from a single pair of runs,
#: and how two float32 runs round depends on the processor.
STATISTICS_FLOOR = 1e-4
NOISE_FACTOR_STATISTICS = 10.0
#: The stored float64 runs round a few of their terms to float32.
TOLERANCE_F64 = 1e-6

#: presets that are not called as our methods are
_METHODS = {"lwfmc": "lwf-mc"}
_INITS: dict[str, tuple[str, dict[str, Any]]] = {
    "awt": ("awt", {}),
    # how many masks there are decides the grouping
    "awtjoint": ("awt", {}),
    "awtperclass": ("awt", {}),
    "originit": ("mib", {}),
    "randominit": ("random", {}),
    "copy": ("awt", {"replace": True}),
    "copybias": ("awt", {"copy_bias": True}),
    "awtcopy": ("awt", {"replace": True}),
    "awtcopybias": ("awt", {"copy_bias": True}),
}
_GROUPS = ("body.", "head.", "cls.")


@dataclass(frozen=True)
class Preset:
    """What a trajectory's name says: ``PLOP_kd0_awt``, ``RW_kd0_it1``, ``ILT``."""

    method: str
    options: Mapping[str, Any]
    init: str
    init_options: Mapping[str, Any]

    @classmethod
    def of(cls, name: str) -> Preset:
        """Read a name. Raises ``UnknownCaseError`` for a part of it that is not known."""
        first, *rest = name.lower().split("_")
        method = _METHODS.get(first, first)
        if method not in methods.names():
            raise UnknownCaseError(f"preset '{name}'")
        defaults = methods.describe(method).defaults
        options: dict[str, Any] = {}
        init, init_options = methods.describe(method).default_init, dict[str, Any]()
        for part in rest:
            if part in ("asis", "kd0"):
                options.update(compat_options(method, part))
            elif part in _INITS:
                init, init_options = _INITS[part]
            elif (match := re.fullmatch(r"it(\d+)", part)) and "interval" in defaults:
                options["interval"] = int(match[1])
            else:
                raise UnknownCaseError(f"preset '{name}': what is '{part}'?")
        if "published_thresholds" in defaults:
            # There is no published run with the thresholds that were meant.
            options["published_thresholds"] = True
        return cls(method, options, init, init_options)


@dataclass
class Step:
    """What a step of training left behind."""

    network: SegmentationNetwork
    importances: dict[str, Tensor]
    #: by the names of the arrays that they are compared with
    records: dict[str, Array]
    #: norms of a regulariser's statistics, tensor by tensor, by ``<kind>/<statistic>``
    statistics: dict[str, Array]
    #: the test's logits at full size, and its confusion matrix
    logits: Tensor
    matrix: Tensor


def check(case: Case) -> None:
    """Check a method's run, or the networks after step 0 that the set-up holds."""
    if "images_step0" in case:
        _check_setup(case)
    elif "s0/parts" in case:
        _check_run(case)
    else:
        raise UnknownCaseError("neither a run (s0/parts) nor a set-up (images_step0)")


def _check_setup(case: Case) -> None:
    for objective, prefix in (("ce", "after0_ce/"), ("bce", "after0_bce/")):
        if stored := case.part(prefix):
            method = methods.create_base(objective, case.hyper["classes_per_step"][0])
            step = train_step(case, 0, method, None, None, torch.float32, columns=[])
            ours = step.network.state_dict()
            for name in stored:
                compare = case.close if ours[name].is_floating_point() else case.exact
                compare(f"{prefix}{name}", ours[name])


def _check_run(case: Case) -> None:
    setup = case.cases.beside(case, case.hyper["see"])
    preset = Preset.of(case.name.rpartition("/")[2])
    steps = sorted({int(match[1]) for match in case.matching(r"s(\d+)/parts")})
    double: Step | None = None
    single: Step | None = None
    for step in steps:
        columns = case.hyper["components"]
        double = run_step(setup, preset, step, double, torch.float64, columns)
        single = run_step(setup, preset, step, single, torch.float32, columns)
        _compare(case, step, double)
        _compare_float32(case, step, single)
        _compare_statistics(case, step, preset.method, single, double)


def _noise(case: Case, array: str) -> float:
    """The difference of float32 and float64 that a case states for an array, or 0."""
    return float(case.entry.get("float32_vs_float64_max_rel_diff", {}).get(array, 0.0))


def _compare(case: Case, step: int, ours: Step) -> None:
    """Compare a float64 run with the stored runs of both precisions."""
    for name, values in ours.records.items():
        array = f"s{step}/{name}"
        case.close(f"{array}_f64", values, TOLERANCE_F64, columns=True)
        # a classifier's norm has no figure of its own, that of all parts of the network has
        figure = array.replace("cls_norms", "group_norms")
        tolerance = max(NOISE_FLOOR, NOISE_FACTOR * _noise(case, figure))
        if name.endswith("_labels_pseudo"):
            if array in case:
                differs = values != case.array(array)
                flips = _noise(case, array.replace("_labels_pseudo", "_label_flips_f32_f64"))
                share = NOISE_FACTOR * flips / differs.size
                case.record(array, float(differs.mean()), share)
        elif name.endswith("_adaptive"):
            flips = _noise(case, array.replace("_adaptive", "_label_flips_f32_f64"))
            case.close(array, values, tolerance + NOISE_FACTOR * flips)
        elif name == "grad_norms":
            stated = _noise(case, f"s{step}/group_grad_norms")
            tolerance = max(NOISE_FLOOR, NOISE_FACTOR_TENSORS * stated)
            case.close(array, values, tolerance)
        elif name == "test_mean_iou":
            logits = _noise(case, f"s{step}/eval_small_logits")
            case.close(array, values, tolerance + _undecided(ours, NOISE_FACTOR * logits))
        else:
            case.close(array, values, tolerance, columns=name != "eval_small_logits")


def _undecided(ours: Step, noise: float) -> float:
    """How much of the mean IoU hangs on pixels whose two best classes ``noise`` could swap.

    A pixel that changes from one class to another changes the IoU of either by at most one
    over its union.
    """
    best, order = ours.logits.topk(2, dim=1)
    close = best[:, 0] - best[:, 1] <= 2 * noise * ours.logits.abs().max()
    union = ours.matrix.sum(0) + ours.matrix.sum(1) - ours.matrix.diagonal()
    exists = ours.matrix.sum(1) > 0
    change = torch.where(exists, 1 / union.clamp(min=1), 0.0) / exists.sum()
    swapped = change[order[:, 0][close]].sum() + change[order[:, 1][close]].sum()
    return float(swapped) / float(ours.records["test_mean_iou"])


def _compare_float32(case: Case, step: int, ours: Step) -> None:
    """Compare a float32 run as far as the case says how much such runs differ."""
    for name, values in ours.records.items():
        array = f"s{step}/{name}"
        if noise := _noise(case, array):
            tolerance = max(NOISE_FLOOR_F32, NOISE_FACTOR_F32 * noise)
            case.close(array, values, tolerance, columns=name != "eval_small_logits")


def _compare_statistics(case: Case, step: int, method: str, single: Step, double: Step) -> None:
    """Compare the norms of a regulariser's statistics, tensor by tensor, in float32.

    No noise is stated for them, and PI's and RW's divide by squared movements that may be a few
    units of the last place: what our own two runs differ by is taken instead.
    """
    for name, norms in single.statistics.items():
        kind, _, quantity = name.partition("/")
        array = f"s{step}/reg_{quantity}_norms"
        if kind != method or array not in case:
            continue
        theirs, exact = case.array(array), double.statistics[name]
        if norms.shape != theirs.shape:
            case.record(array, float("inf"), 0.0)
            continue
        scale = np.maximum(np.abs(theirs), 1e-6 * np.abs(theirs).max() + 1e-30)
        difference = np.abs(norms - theirs) / scale
        noise = np.abs(norms - exact) / scale
        tolerance = STATISTICS_FLOOR + NOISE_FACTOR_STATISTICS * noise
        worst = int(np.argmax(difference / tolerance))
        case.record(array, float(difference[worst]), float(tolerance[worst]))


def run_step(
    setup: Case,
    preset: Preset,
    step: int,
    before: Step | None,
    dtype: torch.dtype,
    columns: list[str],
) -> Step:
    """Run a step of a preset after the one ``before``; step 0 once for all that share it."""
    classes = setup.hyper["classes_per_step"]
    if before is not None:
        n_old, n_new = sum(classes[:step]), classes[step]
        method = methods.create(preset.method, preset.options, n_old, n_new)
        return train_step(setup, step, method, before, preset, dtype, columns)
    interval = preset.options.get("interval")
    objective = methods.describe(preset.method).base_objective
    key = ("step 0", setup.entry["file"], objective, interval, dtype, *columns)
    cache = setup.cases.cache
    if key not in cache:
        if interval is None:
            method = methods.create_base(objective, classes[0])
        else:
            method = methods.create(preset.method, {"interval": interval}, 0, classes[0])
        cache[key] = train_step(setup, 0, method, None, None, dtype, columns)
    result: Step = cache[key]
    return result


def train_step(
    setup: Case,
    step: int,
    method: Method,
    before: Step | None,
    preset: Preset | None,
    dtype: torch.dtype,
    columns: list[str],
) -> Step:
    """Train one step on the set-up's batches and record what the published run recorded.

    ``columns`` are the loss components to record, in order.
    """
    records: dict[str, Array] = {}
    if before is None:
        network = _initial(setup).to(dtype)
        teacher = None
    else:
        assert preset is not None
        network = _widened(setup, step, before.network, preset)
        teacher = copy.deepcopy(before.network)
        if isinstance(method, Regularised):
            method.load_importances(before.importances, dict(teacher.named_parameters()))
        for number, classifier in enumerate(network.classifiers):
            assert classifier.bias is not None
            records[f"start_cls.{number}.weight"] = classifier.weight.detach().numpy().copy()
            records[f"start_cls.{number}.bias"] = classifier.bias.detach().numpy().copy()
    batches = list(_batches(setup, step, dtype))
    recipe = Recipe(1, setup.hyper["lr"][str(step)], len(batches[0][0]), precision="fp32")
    training = Training(network, teacher, method, recipe, len(batches), setup.device)
    method.prepare(teacher, iter(batches))

    gradients: dict[str, Tensor] = {}
    training.optimiser.register_step_pre_hook(
        lambda *_: gradients.update(
            {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
        )
    )
    names = setup.hyper.get(f"parameter_names_step{step}") or [*trainable(network)]
    if sorted(names) != sorted(trainable(network)):
        raise AssertionError(f"parameters of step {step} are not called {names}")
    rows: dict[str, list[Any]] = {}
    for t, (images, labels) in enumerate(batches):
        if teacher is not None and "thresholds" in method.state_dict():
            records |= _pseudo_labels(method, teacher, images, labels, t)
        rows.setdefault("lr", []).append([training.lr] * len(_GROUPS))
        terms, _ = training.update(images, labels)
        loss = torch.stack([v for name, v in terms.items() if name != "penalty"]).sum()
        shown = [column for column in columns if column != "loss_tot"]
        parts = dict(zip(shown, named_parts(_name(method), terms, shown), strict=True))
        parts["loss_tot"] = loss
        rows.setdefault("parts", []).append([float(parts[column]) for column in columns])
        parameters = {name: p.detach() for name, p in network.named_parameters()}
        for kind, tensors in (("group_", parameters), ("group_grad_", gradients)):
            norms = [_norm(v for n, v in tensors.items() if n.startswith(g)) for g in _GROUPS]
            rows.setdefault(f"{kind}norms", []).append(norms)
        for kind, tensors in (("param_", parameters), ("grad_", gradients)):
            rows.setdefault(f"{kind}norms", []).append([_norm([tensors[n]]) for n in names])
        each = [_norm(classifier.parameters()) for classifier in network.classifiers]
        rows.setdefault("cls_norms", []).append(each)
    records |= {name: np.array(values, dtype=np.float64) for name, values in rows.items()}
    importances = method.importances(network)
    statistics = _statistics(method, network, names, importances)
    small, logits, matrix = _test(setup, step, network, dtype)
    records["eval_small_logits"] = small.cpu().numpy()
    records["test_mean_iou"] = np.array(metrics.mean_iou(metrics.iou(matrix)) / 100)
    return Step(network, importances, records, statistics, logits, matrix)


def _name(method: Method) -> str:
    """The name of a method's module."""
    return type(method).__module__.rpartition(".")[2]


def _initial(setup: Case) -> SegmentationNetwork:
    text = setup.hyper["network"]
    stride, pooling = re.search(r"output_stride (\d+)", text), re.search(r"pooling (\d+)", text)
    if stride is None or pooling is None:
        raise UnknownCaseError(f"a network described as '{text}'")
    state = setup.part("init/")
    classes = [setup.hyper["classes_per_step"][0]]
    return loaded(network_for(state, classes, int(stride[1]), int(pooling[1])), state)


def _widened(
    setup: Case, step: int, old: SegmentationNetwork, preset: Preset
) -> SegmentationNetwork:
    """Add the stored fresh classifier, and initialise it as the pipeline does."""
    n_new = setup.hyper["classes_per_step"][step]
    # Where jobs of their own do it.
    network = widened(copy.deepcopy(old).cpu(), n_new, seed=0)
    newest = network.classifiers[-1]
    assert newest.bias is not None
    with torch.no_grad():
        newest.weight.copy_(setup.tensor(f"fresh/cls.{step}.weight"))
        newest.bias.copy_(setup.tensor(f"fresh/cls.{step}.bias"))
    attribution, options = None, dict(preset.init_options)
    if describe_initialisation(preset.init).needs_attribution:
        masks = setup.tensor("mask").cpu().reshape(-1, network.config.head_channels)
        attribution = _choosing(masks, range(old.n_classes, network.n_classes))
        options["grouping"] = "joint" if len(masks) == 1 else "per_class"
        options["fraction"] = float(masks[0].sum()) / masks.shape[1]
    transfer.initialise(network, preset.init, options, attribution, seed=0)
    return network


def _choosing(masks: Tensor, classes: range) -> Attribution:
    """An attribution whose scores are best for the channels of ``masks``, [1 or n, C]."""
    best = torch.zeros(len(classes), masks.shape[1])
    best[: len(masks)] = masks.float()
    count = torch.ones(len(classes), dtype=torch.int64)
    return Attribution(tuple(classes), best[:, :, None, None], count, 1, best, best[0])


def _batches(setup: Case, step: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    images = to_network_input(setup.tensor(f"images_step{step}")).to(dtype)
    labels = setup.tensor(f"labels_step{step}").long()
    for rows in setup.array(f"order_step{step}"):
        yield images[rows], labels[rows]


def _pseudo_labels(
    method: Method, teacher: nn.Module, images: Tensor, labels: Tensor, t: int
) -> dict[str, Array]:
    """PLOP's thresholds and what its teacher makes of a batch."""
    thresholds = method.state_dict()["thresholds"]
    n_outputs = method.n_old + method.n_new
    with torch.no_grad():
        logits = teacher.eval()(images).upsampled
    pseudo, share = plop.pseudo_labels(labels, logits, thresholds, n_outputs)
    unused = thresholds.new_full((method.n_new,), method.options["lowest_threshold"])
    return {
        "thresholds": torch.cat([thresholds, unused]).cpu().numpy(),
        f"t{t}_labels_pseudo": pseudo.cpu().numpy(),
        f"t{t}_adaptive": share[:, None, None].cpu().numpy(),
    }


def _statistics(
    method: Method, network: nn.Module, names: list[str], importances: Mapping[str, Tensor]
) -> dict[str, Array]:
    """Norms of the tensors of each statistic, in the order of ``names``."""
    tensors: dict[str, list[Tensor]] = {}
    for name in names:
        for key, tensor in importances.items():
            if key.endswith(f"/{name}"):
                tensors.setdefault(key.removesuffix(f"/{name}"), []).append(tensor)
    if "pi/path" in (state := method.state_dict()):
        path = unflatten(state["pi/path"], trainable(network))
        tensors["pi/delta"] = [path[name] for name in names]
    return {key: np.array([_norm([v]) for v in values]) for key, values in tensors.items()}


def _norm(tensors: Any) -> float:
    return float(sum(float(v.detach().double().square().sum()) for v in tensors) ** 0.5)


def _test(
    setup: Case, step: int, network: SegmentationNetwork, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Small logits, logits and confusion matrix on the step's images."""
    images = to_network_input(setup.tensor(f"images_step{step}")).to(dtype)
    name = f"labels_step{step}_test"
    labels = setup.tensor(name if name in setup else f"labels_step{step}").long()
    with torch.no_grad():
        output = copy.deepcopy(network).eval()(images)
    matrix = metrics.confusion_matrix(labels, output.logits.argmax(1), network.n_classes)
    return output.small_logits, output.logits, matrix
