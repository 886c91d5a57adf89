"""Parameter importances of EWC, PI and RW, and the penalty that they share.

Each kind observes a training run: once per iteration it sees the parameters and the gradient of
the loss, before the penalty's gradient and before the optimiser step. What it has recorded at the
end of a step (its *statistics*) travels to the next step, where it weighs how far a parameter may
move from the value θ' that it had: penalty = importance · Σ weight · (θ − θ')², summed over the
parameters that exist in both networks.

All trainable parameters are handled as one vector [P] in the network's order, all state on the
network's device, with no copy to the host. An iteration goes through it part by part: a GPU gets
fewer kernels than there are tensors, and a CPU no new memory of the network's size, whose pages
would take longer to come by than the sums.
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


#: values in a part: what a CPU's allocator keeps for the next; a GPU wants work for each kernel
PART = {"cpu": 2**21, "cuda": 2**24}


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name, in the network's order."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """Concatenate all values into one vector [P]; that of a single tensor is the tensor's own."""
    vectors = [tensor.reshape(-1) for tensor in tensors]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors)


def parts(parameters: Iterable[nn.Parameter]) -> list[tuple[slice, list[nn.Parameter]]]:
    """Cut the vector into parts of whole tensors, about ``PART`` values each or one tensor."""
    found: list[tuple[slice, list[nn.Parameter]]] = []
    begin, members = 0, list[nn.Parameter]()
    for parameter in parameters:
        end = begin + sum(member.numel() for member in members)
        most = PART.get(parameter.device.type, PART["cpu"])
        if members and end - begin + parameter.numel() > most:
            found.append((slice(begin, end), members))
            begin, members = end, []
        members = [*members, parameter]
    if members:
        end = begin + sum(member.numel() for member in members)
        found.append((slice(begin, end), members))
    return found


def _gradient(members: Iterable[nn.Parameter]) -> Tensor:
    """The gradients of some parameters as one vector, 0 where there is none; not to be written."""
    return flatten(torch.zeros_like(p) if p.grad is None else p.grad for p in members)


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

    def update(self, part: slice, parameters: Tensor, gradient: Tensor, finite: Tensor) -> None:
        """See a part of the vector in one iteration.

        ``gradient`` is 0 where the whole was not ``finite`` (scalar bool).
        """
        raise NotImplementedError

    def advance(self) -> None:
        """Take note that all parts of an iteration were seen."""

    def record(self, parameters: Tensor) -> dict[str, Tensor]:
        """Return the statistics [P] by name once training has ended at θ = ``parameters``."""
        raise NotImplementedError

    def _initial_fisher(self, parameters: Tensor) -> Tensor:
        """Ones for parameters without history (also at step 0), as published."""
        ones = torch.ones_like(parameters)
        if self.history is None:
            return ones
        return torch.where(self.history.known, self.history.statistics["fisher"], ones)

    def _update_fisher(self, part: slice, gradient: Tensor, finite: Tensor) -> None:
        rate = finite.to(gradient.dtype) * FISHER_UPDATE
        self.state["fisher"][part].lerp_(gradient.square(), rate)


class Fisher(Importance):
    """EWC: online diagonal Fisher information (Kirkpatrick et al., PNAS 2017)."""

    kind: ClassVar[str] = "ewc"
    statistics: ClassVar[tuple[str, ...]] = ("fisher",)

    def initial(self, parameters: Tensor) -> dict[str, Tensor]:
        """The Fisher information so far; it continues from the unnormalised one."""
        return {"fisher": self._initial_fisher(parameters)}

    def update(self, part: slice, parameters: Tensor, gradient: Tensor, finite: Tensor) -> None:
        """F ← 0.9 g² + 0.1 F."""
        self._update_fisher(part, gradient, finite)

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

    def update(self, part: slice, parameters: Tensor, gradient: Tensor, finite: Tensor) -> None:
        """ω ← ω + g·(θ_last − θ)."""
        path, last = self.state["path"][part], self.state["last"][part]
        path.addcmul_(gradient, last - parameters)
        last.copy_(parameters)

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

    def update(self, part: slice, parameters: Tensor, gradient: Tensor, finite: Tensor) -> None:
        """Update the score with the Fisher information so far, then that."""
        if int(self.state["iterations"]) % self.options["interval"] == 0:
            fisher, score, last = (self.state[name][part] for name in ("fisher", "score", "last"))
            moved = parameters - last
            distance = 0.5 * fisher * moved.square() + self.damping
            score.sub_(gradient * moved / distance)
            last.copy_(parameters)
        self._update_fisher(part, gradient, finite)

    def advance(self) -> None:
        """Count the iterations."""
        self.state["iterations"] += 1

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
        divided = parts(parameters)
        with torch.no_grad():
            # Where one value is not finite neither is their sum.
            sums = torch.stack([_gradient(members).sum() for _, members in divided])
            finite = sums.sum().isfinite()
            # On a CPU that is known already, and a copy of the gradient costs more.
            as_it_is = finite.device.type == "cpu" and bool(finite)
            for part, members in divided:
                gradient = _gradient(members)
                if not as_it_is:
                    gradient = gradient.masked_fill(~finite, 0)
                values = flatten(members)
                for recorder in recorders:
                    recorder.update(part, values, gradient, finite)
            for recorder in recorders:
                recorder.advance()

    def penalty(self, network: nn.Module) -> Tensor | None:
        """λ · Σ weight · (θ − θ')² over all recorders with a history."""
        histories = [r.history for r in self._begin(network) if r.history is not None]
        if not histories:
            return None
        sums = []
        for part, members in parts(trainable(network).values()):
            values = flatten(members)
            for history in histories:
                moved = values - history.parameters[part]
                sums.append((history.weight[part] * moved.square()).sum())
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
                _of_shape(prefix + name, source, p)
                if name in self._previous
                else p.new_zeros(p.shape)
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


def _of_shape(name: str, source: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """Return ``source[name]``, on the device of ``like``; ``KeyError`` for one of another shape."""
    if source[name].shape != like.shape:
        raise KeyError(name)
    return source[name].to(like)


class ImportanceRecording(Regularised):
    """Step 0 of EWC, PI and RW in one: cross-entropy, all three importances recorded.

    Option ``interval`` as in ``rw``.
    """

    kinds: ClassVar[tuple[type[Importance], ...]] = (Fisher, PathIntegral, RiemannianWalk)
