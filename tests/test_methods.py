"""Every method through its hooks, and the registry that finds them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import golden_cases, load_case, relative_difference
from torch import nn

from ciss import methods
from ciss.errors import CissError
from ciss.methods.base import VOID, Batch, Method
from ciss.pixelwise import Upsampled

NAMES = methods.names()
#: those that have losses
TRAINED = methods.trained_names()
WITH_TEACHER = ("lwf", "lwf-mc", "ilt", "mib", "plop", "ssul")
N_OLD, N_NEW = 4, 2
TOLERANCE = 2e-5
#: the published preset of each case's name
PUBLISHED: list[tuple[str, str, dict[str, Any]]] = [
    ("ft_kd0", "ft", {}),
    ("ft_asis", "ft", {"compat": True}),
    ("lwf", "lwf", {}),
    ("lwfmc_kd0", "lwf-mc", {}),
    ("lwfmc_asis", "lwf-mc", {"compat": True}),
    ("ilt", "ilt", {}),
    ("mib", "mib", {}),
]


def random_outputs(channels: int, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(2, *shape, generator=generator).to(dtype).requires_grad_()

    return full_size(
        draw(channels, 16, 16),
        small_logits=draw(channels, 4, 4),
        body=draw(5, 4, 4),
        pre_logits=draw(8, 4, 4),
        attentions=[draw(3, 8, 8), draw(3, 4, 4), draw(5, 4, 4), draw(5, 4, 4)],
    )


def full_size(logits: torch.Tensor, **others: Any) -> Any:
    """An output whose logits are at the images' size already."""
    made = SimpleNamespace(logits=logits, upsampled=Upsampled.of(logits), **others)
    made.allocated = made
    # The unknown's logit is that of the background, turned round.
    made.upsampled_with_unknown = Upsampled.of(torch.cat([logits, -logits[:, :1]], dim=1))
    return made


def detached(outputs: Any) -> Any:
    values = {
        name: [v.detach() for v in value] if isinstance(value, list) else value.detach()
        for name, value in vars(outputs).items()
        if name not in ("upsampled", "allocated", "upsampled_with_unknown")
    }
    return full_size(**values)


def random_labels(which: str = "mixed") -> torch.Tensor:
    fills = {"void": VOID, "background": 0, "new": N_OLD}
    labels = torch.full((2, 16, 16), fills.get(which, 0))
    if which == "mixed":
        labels[0, :4], labels[1, :4], labels[:, 4:6] = N_OLD, N_OLD + 1, VOID
    return labels


def create_at_step_1(name: str, **options: Any) -> Method:
    method = methods.create(name, options, N_OLD, N_NEW)
    method.load_state_dict({"thresholds": torch.full((N_OLD,), 0.05)})
    return method


def test_the_published_nine_are_registered() -> None:
    published = {"ft", "lwf", "lwf-mc", "ilt", "ewc", "rw", "pi", "mib", "plop"}
    assert published <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_description_read_from_source_is_the_class(name: str) -> None:
    found = methods.method_class(name)
    description = methods.describe(name)
    for fact in vars(description):
        assert getattr(description, fact) == getattr(found, fact), fact
    assert {*found.base_options} <= found.defaults.keys()
    assert found.published.keys() <= found.defaults.keys()
    assert ("compat" in found.defaults) == bool(found.published)
    assert found.base_objective in methods.BASE_OBJECTIVES


def test_planning_loads_no_torch() -> None:
    code = (
        "import sys; from ciss import methods; "
        "[methods.describe(n) for n in methods.names()]; methods.check_options('mib', {}); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_new_file_is_a_new_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own.py").write_text(
        "from ciss.methods.lwf import LearningWithoutForgetting\n\n\n"
        "class Mine(LearningWithoutForgetting):\n    default_init = 'awt'\n"
    )
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert "my-own" in methods.names()
    assert methods.describe("my-own").default_init == "awt"
    assert methods.describe("my-own").defaults == methods.describe("lwf").defaults
    assert methods.create("my-own", {}, 3, 1).options == {"distillation": 100.0}


def test_a_file_with_two_methods_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning could take one of them, and training the other."""
    (tmp_path / "two_in_one.py").write_text(
        "from ciss.methods.ft import FineTuning\n\n\n"
        "class B(FineTuning):\n    pass\n\n\nclass A(B):\n    pass\n"
    )
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    for find in (methods.describe, methods.method_class):
        with pytest.raises(CissError, match="two_in_one has 2 subclasses"):
            find("two-in-one")


def test_a_file_whose_name_no_experiment_can_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    for name in ("MiB2", "two__lines", "end_"):
        file = tmp_path / f"{name}.py"
        file.write_text("")
        methods._names_in.cache_clear()
        with pytest.raises(CissError, match=f"{name}.py: rename it to lower-case letters"):
            methods.names()
        file.unlink()
    methods._names_in.cache_clear()


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(CissError, match="did you mean 'plop'"):
        methods.method_class("plopp")
    with pytest.raises(CissError, match="did you mean 'distillation'"):
        methods.create("mib", {"destillation": 1}, 3, 1)
    with pytest.raises(CissError, match="ce-importance"):
        methods.create_base("cross-entropy", 3)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_given_explicitly_change_nothing(name: str) -> None:
    """The workflow may pass merged options; `compat` must still take effect."""
    defaults = methods.describe(name).defaults
    found = methods.method_class(name)
    assert methods.create(name, defaults, N_OLD, N_NEW).options == defaults
    if found.published:
        merged = methods.create(name, {**defaults, "compat": True}, N_OLD, N_NEW).options
        assert merged == {**defaults, **found.published, "compat": True}
        assert merged == methods.create(name, {"compat": True}, N_OLD, N_NEW).options
    # What is set to something else than the default stays as it is set.
    for option in found.published.keys() & {"distillation", "softmax_distillation"}:
        chosen = methods.create(name, {"compat": True, option: 5.0}, N_OLD, N_NEW)
        assert chosen.options[option] == 5.0


@pytest.mark.parametrize("which", ["mixed", "void", "background", "new"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TRAINED)
def test_step_1_is_finite_and_trains(name: str, dtype: torch.dtype, which: str) -> None:
    method = create_at_step_1(name)
    student = random_outputs(N_OLD + N_NEW, 1, dtype)
    teacher = detached(random_outputs(N_OLD, 2, dtype)) if method.needs_teacher else None
    terms = method.losses(Batch(random_labels(which), student, teacher))
    total = torch.stack(list(terms.values())).sum()
    assert total.dtype == torch.float32
    assert total.isfinite()
    total.backward()
    gradient = student.logits.grad
    assert gradient.isfinite().all()
    if which in ("mixed", "background"):
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("objective", methods.BASE_OBJECTIVES)
def test_step_0_has_the_classification_term_alone(objective: str) -> None:
    method = methods.create_base(objective, N_OLD)
    student = random_outputs(N_OLD, 1)
    labels = random_labels("background")
    labels[0, :4], labels[1, :2] = 1, VOID
    terms = method.losses(Batch(labels, student, None))
    assert terms.keys() == {"classification"}
    assert method.penalty(nn.Linear(2, 2)) is None


def test_step_0_of_a_method_s_own_takes_its_options() -> None:
    linear, conv = (methods.create_base("ssul", N_OLD, {"heads": h}) for h in ("linear", "conv"))
    assert (linear.network_extras["hidden"], conv.network_extras["hidden"]) == (False, True)


@pytest.mark.parametrize("name", TRAINED)
def test_every_method_at_step_0_is_its_base_objective(name: str) -> None:
    """What makes it right to share step 0."""
    student = random_outputs(N_OLD, 1)
    batch = Batch(random_labels("background"), student, None)
    base = methods.create_base(methods.describe(name).base_objective, N_OLD)
    ours = methods.create(name, {}, 0, N_OLD).losses(batch)
    theirs = base.losses(batch)
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["classification"], theirs["classification"])


@pytest.mark.parametrize("name", [name for name in WITH_TEACHER if name != "ssul"])
def test_a_student_that_repeats_its_teacher_pays_only_the_entropy(name: str) -> None:
    """Terms against forgetting are at their least: their gradient on old outputs is zero."""
    method = create_at_step_1(name)
    teacher = detached(random_outputs(N_OLD, 2))
    silent = {"logits": -1e4, "small_logits": 0.0}  # new classes without probability
    student = detached(teacher)
    for key, fill in silent.items():
        old = getattr(teacher, key)
        new = torch.full_like(old[:, :N_NEW], fill)
        setattr(student, key, torch.cat([old, new], dim=1))
    student.logits.requires_grad_()
    student.upsampled = Upsampled.of(student.logits)
    terms = method.losses(Batch(random_labels(), student, teacher))
    del terms["classification"]
    assert terms
    for key in ("pod", "features"):
        assert key not in terms or terms[key] == 0
    if "distillation" in terms:
        (gradient,) = torch.autograd.grad(terms["distillation"], student.logits)
        assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("name", TRAINED)
def test_teacher_is_asked_for_only_where_used(name: str) -> None:
    method = methods.create(name, {}, N_OLD, N_NEW)
    assert method.needs_teacher == (name in WITH_TEACHER)
    if methods.method_class(name).published:
        assert methods.create(name, {"compat": True}, N_OLD, N_NEW).needs_teacher


@pytest.mark.parametrize(
    ("name", "option", "term"),
    [
        ("ft", "distillation", "distillation"),
        ("lwf", "distillation", "distillation"),
        ("ilt", "distillation", "distillation"),
        ("ilt", "feature_distillation", "features"),
        ("lwf-mc", "distillation", "distillation"),
        ("lwf-mc", "softmax_distillation", "softmax_distillation"),
        ("mib", "distillation", "distillation"),
        ("plop", "distillation", "distillation"),
    ],
)
def test_a_weight_is_that_of_its_term_alone(name: str, option: str, term: str) -> None:
    student = random_outputs(N_OLD + N_NEW, 1)
    teacher = detached(random_outputs(N_OLD, 2))

    def terms(weight: float) -> dict[str, float]:
        method = create_at_step_1(name, **{option: weight})
        assert method.needs_teacher
        found = method.losses(Batch(random_labels(), student, teacher))
        return {key: value.item() for key, value in found.items()}

    once, thrice = terms(1.0), terms(3.0)
    assert once[term] > 0
    expected = {key: value * (3 if key == term else 1) for key, value in once.items()}
    assert thrice == pytest.approx(expected, rel=1e-6)


def test_no_weight_no_term_and_no_teacher_for_it() -> None:
    student, teacher = random_outputs(N_OLD + N_NEW, 1), detached(random_outputs(N_OLD, 2))
    for name in ("ft", "lwf", "plop"):
        method = create_at_step_1(name, distillation=0.0)
        assert "distillation" not in method.losses(Batch(random_labels(), student, teacher)), name
        assert method.needs_teacher == (name == "plop")
    none = {"distillation": 0.0, "feature_distillation": 0.0}
    for weights in ({}, {"distillation": 1.0}, {"feature_distillation": 1.0}):
        assert methods.create("ilt", none | weights, 4, 2).needs_teacher == bool(weights)


@pytest.mark.parametrize(("key", "name", "options"), PUBLISHED)
@pytest.mark.parametrize("case", [c for c in golden_cases("1_losses") if "step0" not in str(c.id)])
def test_terms_match_the_published_trainer(
    case: dict[str, Any], key: str, name: str, options: dict[str, Any]
) -> None:
    arrays, hyper = load_case(case), case["hyperparameters"]
    method = methods.create(name, options, hyper["n_old"], hyper["n_new"])
    logits = torch.from_numpy(arrays["logits_new"]).requires_grad_()
    body = torch.from_numpy(arrays["body_new"]).requires_grad_()
    batch = Batch(
        torch.from_numpy(arrays["labels"]).long(),
        full_size(logits, body=body),
        full_size(
            torch.from_numpy(arrays["logits_old"]), body=torch.from_numpy(arrays["body_old"])
        ),
    )
    terms = method.losses(batch)
    total = torch.stack(list(terms.values())).sum()
    softmax, binary = ("softmax_distillation", "distillation")
    if name != "lwf-mc":
        softmax, binary = "distillation", "none"
    zero = torch.zeros(())
    parts = ["classification", softmax, "features", binary]
    ours = torch.stack([*(terms.get(p, zero) for p in parts), total])
    theirs = arrays[f"trainer_{key}_parts"]
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=TOLERANCE, atol=1e-7)
    total.backward()
    if (gradient := arrays.get(f"trainer_{key}_grad")) is not None:
        assert relative_difference(logits.grad.numpy(), gradient) < TOLERANCE
    if key == "ilt":
        theirs = arrays["trainer_ilt_grad_body"]
        assert relative_difference(body.grad.numpy(), theirs) < TOLERANCE
