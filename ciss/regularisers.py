"""Parameter importances of EWC, PI and RW, and the penalty that they share.

Each kind observes a training run: once per iteration it sees the parameters and the gradient of
the loss, before the penalty's gradient and before the optimiser step. What it has recorded at the
end of a step (its *statistics*) travels to the next step, where it weighs how far a parameter may
move from the value θ' that it had: penalty = importance · Σ weight · (θ − θ')², summed over the
parameters that exist in both networks.

All trainable parameters are handled as one vector [P] in the network's order: a few kernels an
iteration instead of a few for each tensor, all state on the network's device, and no copy to the
host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ciss.errors import CissError
from ciss.methods.ft import FineTuning

#: share of the newest squared gradient in the online Fisher information (published AWT code)
FISHER_UPDATE = 0.9


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name, in the network's order."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Concatenate all values into one vector [P]."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo ``flatten``: tensors shaped as ``like``'s, each with its own memory."""
    parts = vector.split([tensor.numel() for tensor in like.values()])
    return {
        name: part.reshape(tensor.shape).clone()
        for (name, tensor), part in zip(like.items(), parts, strict=True)
    }


def min_max(values: Tensor) -> Tensor:
    """Scale a tensor to [0, 1]; a constant one becomes 0.

    The published 1e-8 also damps tensors whose values all lie within that.
    """
    low, high = torch.aminmax(values)
    return (values - low) / (high - low + 1e-8)


@dataclass
class History:
    """What the step before left, in the present network's order; 0 for new parameters."""

    #: [P] bool: whether the parameter existed
    known: Tensor
    #: [P] θ'
    parameters: Tensor
    #: raw statistics by name, [P] each
    statistics: dict[str, Tensor]
    #: [P] weight of the penalty
    weight: Tensor


class Importance:
    """One kind of importance. ``state`` is all that changes between iterations."""

    kind: ClassVar[str]
    statistics: ClassVar[tuple[str, ...]]

    def __init__(
        self, parameters: Tensor, history: History | None, options: Mapping[str, Any]
    ) -> None:
        self.history = history
        self.options = options
        self.state = self.initial(parameters)

    def initial(self, parameters: Tensor) -> dict[str, Tensor]:
        """Return the state before the first iteration of a step, where θ is ``parameters``."""
        raise NotImplementedError

    def update(self, parameters: Tensor, gradient: Tensor, finite: Tensor) -> None:
        """See one iteration; ``gradient`` is 0 where it was not ``finite`` (scalar bool)."""
        raise NotImplementedError

    def record(self, parameters: Tensor) -> dict[str, Tensor]:
        """Return the statistics [P] by name once training has ended at θ = ``parameters``."""
        raise NotImplementedError

    def _initial_fisher(self, parameters: Tensor) -> Tensor:
        """Ones for parameters without history (also at step 0), as published."""
        ones = torch.ones_like(parameters)
        if self.history is None:
            return ones
        return torch.where(self.history.known, self.history.statistics["fisher"], ones)

    def _update_fisher(self, gradient: Tensor, finite: Tensor) -> None:
        rate = finite.to(gradient.dtype) * FISHER_UPDATE
        self.state["fisher"].lerp_(gradient.square(), rate)


class Fisher(Importance):
    """EWC: online diagonal Fisher information (Kirkpatrick et al., PNAS 2017)."""

    kind: ClassVar[str] = "ewc"
    statistics: ClassVar[tuple[str, ...]] = ("fisher",)

    def initial(self, parameters: Tensor) -> dict[str, Tensor]:
        """The Fisher information so far; it continues from the unnormalised one."""
        return {"fisher": self._initial_fisher(parameters)}

    def update(self, parameters: Tensor, gradient: Tensor, finite: Tensor) -> None:
        """F ← 0.9 g² + 0.1 F."""
        self._update_fisher(gradient, finite)

    def record(self, parameters: Tensor) -> dict[str, Tensor]:
        """The Fisher information."""
        return dict(self.state)


class PathIntegral(Importance):
    """PI, synaptic intelligence (Zenke et al., ICML 2017).

    ω sums g·(θ_before − θ_now) along the run; the score is max(ω, 0) over the squared way from
    the step's start, plus the score of the steps before. Its published damping (1e-20) bounds
    nothing: parameters that hardly moved dominate a tensor (kept, with min-max scaling after).
    """

    kind: ClassVar[str] = "pi"
    statistics: ClassVar[tuple[str, ...]] = ("score",)
    damping: ClassVar[float] = 1e-20

    def initial(self, parameters: Tensor) -> dict[str, Tensor]:
        """ω, θ of the last iteration, and θ at the start: θ' where there is one."""
        start = parameters.clone()
        if self.history is not None:
            start = torch.where(self.history.known, self.history.parameters, start)
        last = parameters.clone()
        return {"path": torch.zeros_like(last), "last": last, "start": start}

    def update(self, parameters: Tensor, gradient: Tensor, finite: Tensor) -> None:
        """ω ← ω + g·(θ_last − θ)."""
        state = self.state
        state["path"].addcmul_(gradient, state["last"] - parameters)
        state["last"].copy_(parameters)

    def record(self, parameters: Tensor) -> dict[str, Tensor]:
        """The accumulated score."""
        moved = (parameters - self.state["start"]).square() + self.damping
        score = (self.state["path"] / moved).relu()
        if self.history is not None:
            score = score + self.history.statistics["score"]
        return {"score": score}


class RiemannianWalk(Importance):
    """RW (Chaudhry et al., ECCV 2018): online Fisher information plus a path score.

    Every ``interval`` iterations the score grows by the loss change over the distance in Fisher
    metric since the last time; scores of steps are averaged, new with old.
    """

    kind: ClassVar[str] = "rw"
    statistics: ClassVar[tuple[str, ...]] = ("fisher", "score")
    damping: ClassVar[float] = 1e-8

    def initial(self, parameters: Tensor) -> dict[str, Tensor]:
        """Fisher information, score, θ of the last score update, and iterations so far."""
        return {
            "fisher": self._initial_fisher(parameters),
            "score": torch.zeros_like(parameters),
            "last": parameters.clone(),
            "iterations": torch.zeros((), dtype=torch.int64),
        }

    def update(self, parameters: Tensor, gradient: Tensor, finite: Tensor) -> None:
        """Update the score with the Fisher information so far, then that."""
        state = self.state
        if int(state["iterations"]) % self.options["interval"] == 0:
            moved = parameters - state["last"]
            distance = 0.5 * state["fisher"] * moved.square() + self.damping
            state["score"].sub_(gradient * moved / distance)
            state["last"].copy_(parameters)
        state["iterations"] += 1
        self._update_fisher(gradient, finite)

    def record(self, parameters: Tensor) -> dict[str, Tensor]:
        """The Fisher information and the averaged score."""
        score = self.state["score"].relu()
        if self.history is not None:
            mean = 0.5 * (score + self.history.statistics["score"])
            score = torch.where(self.history.known, mean, score)
        return {"fisher": self.state["fisher"], "score": score}


class Regularised(FineTuning):
    """Fine-tuning that records importances and, after step 0, is held back by the old ones.

    Subclasses name the ``kinds`` that they record. Options: ``importance``, the penalty's weight λ;
    ``normalise``, min-max scaling of each statistic within each tensor, for the penalty only;
    ``distillation`` and ``compat`` as in ``ft``.

    The network handed to the hooks is the bare one: no prefix of a wrapper in its names.
    Gradients must be unscaled; those of an iteration that the optimiser skips because they
    overflowed are ignored.
    """

    kinds: ClassVar[tuple[type[Importance], ...]] = ()
    defaults: ClassVar[dict[str, Any]] = {
        "importance": 100.0,
        "normalise": True,
        "distillation": 0.0,
        "compat": False,
    }
    base_objective: ClassVar[str] = "ce-importance"
    keeps_importances: ClassVar[bool] = True

    def __init__(self, options: Mapping[str, Any], n_old: int, n_new: int) -> None:
        super().__init__(options, n_old, n_new)
        self._importances: Mapping[str, Tensor] = {}
        self._previous: Mapping[str, Tensor] = {}
        self._resumed: Mapping[str, Tensor] = {}
        self._recorders: list[Importance] = []

    def load_importances(
        self, importances: Mapping[str, Tensor], previous: Mapping[str, Tensor]
    ) -> None:
        """Take the raw statistics (``"ewc/fisher/<parameter>"``, …) and θ' by parameter name."""
        self._importances, self._previous = importances, previous

    def after_backward(self, network: nn.Module) -> None:
        """Let every recorder see the parameters and the gradient of the loss."""
        recorders = self._begin(network)
        parameters = list(trainable(network).values())
        with torch.no_grad():
            gradient = flatten(
                torch.zeros_like(p) if p.grad is None else p.grad for p in parameters
            )
            finite = gradient.isfinite().all()
            gradient = torch.where(finite, gradient, torch.zeros_like(gradient))
            values = flatten(parameters)
            for recorder in recorders:
                recorder.update(values, gradient, finite)

    def penalty(self, network: nn.Module) -> Tensor | None:
        """λ · Σ weight · (θ − θ')² over all recorders with a history."""
        histories = [r.history for r in self._begin(network) if r.history is not None]
        if not histories:
            return None
        parameters = flatten(trainable(network).values())
        sums = [(h.weight * (parameters - h.parameters).square()).sum() for h in histories]
        return self.options["importance"] * torch.stack(sums).sum()

    def importances(self, network: nn.Module) -> dict[str, Tensor]:
        """Statistics for the next step: ``"<kind>/<statistic>/<parameter>"``, unnormalised."""
        parameters = trainable(network)
        with torch.no_grad():
            values = flatten(parameters.values())
            return {
                f"{recorder.kind}/{statistic}/{name}": tensor
                for recorder in self._begin(network)
                for statistic, vector in recorder.record(values).items()
                for name, tensor in unflatten(vector, parameters).items()
            }

    def state_dict(self) -> dict[str, Tensor]:
        """The recorders' vectors."""
        if not self._recorders:
            return dict(self._resumed)
        return {
            f"{recorder.kind}/{name}": vector
            for recorder in self._recorders
            for name, vector in recorder.state.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back the recorders' vectors; ``load_importances`` comes first, as always."""
        self._resumed = state
        for recorder in self._recorders:
            self._restore(recorder)

    @torch.no_grad()
    def _begin(self, network: nn.Module) -> list[Importance]:
        """Create the recorders at the first hook that shows the network."""
        if not self._recorders:
            parameters = trainable(network)
            values = flatten(parameters.values())
            for kind in self.kinds:
                recorder = kind(values, self._history(kind, parameters), self.options)
                self._restore(recorder)
                self._recorders.append(recorder)
            # the recorders have their own copies of what they need
            self._importances = self._previous = self._resumed = {}
        return self._recorders

    def _restore(self, recorder: Importance) -> None:
        for name, initial in recorder.state.items():
            saved = self._resumed.get(f"{recorder.kind}/{name}")
            if saved is not None:
                recorder.state[name] = saved.to(initial.device, copy=True)

    def _history(self, kind: type[Importance], parameters: Mapping[str, Tensor]) -> History | None:
        if not self._previous:
            return None

        def old(prefix: str, source: Mapping[str, Tensor]) -> list[Tensor]:
            return [
                source[prefix + name].to(p) if name in self._previous else torch.zeros_like(p)
                for name, p in parameters.items()
            ]

        statistics = {}
        weight = torch.zeros_like(flatten(parameters.values()))
        for statistic in kind.statistics:
            prefix = f"{kind.kind}/{statistic}/"
            try:
                tensors = old(prefix, self._importances)
            except KeyError as error:
                raise CissError(
                    f"the importances of the step before lack {error}: they must come from a run "
                    f"that records {kind.kind}, of the same network"
                ) from error
            statistics[statistic] = flatten(tensors)
            weight += flatten(map(min_max, tensors) if self.options["normalise"] else tensors)
        known = flatten(
            torch.full_like(p, name in self._previous, dtype=torch.bool)
            for name, p in parameters.items()
        )
        return History(known, flatten(old("", self._previous)), statistics, weight)


class ImportanceRecording(Regularised):
    """Step 0 of EWC, PI and RW in one: cross-entropy, all three importances recorded.

    Option ``interval`` as in ``rw``.
    """

    kinds: ClassVar[tuple[type[Importance], ...]] = (Fisher, PathIntegral, RiemannianWalk)
