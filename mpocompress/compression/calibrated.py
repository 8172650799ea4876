"""The work with calibration inputs: bonds chosen by what the model's output feels, cores refitted, outputs compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mpocompress.calibration.calibration import Calibration
from mpocompress.calibration.hooks import WeightGroup
from mpocompress.calibration.refit import CrossMoments, refit, shifted_target
from mpocompress.calibration.rig import Rig
from mpocompress.checkpoint.torch_dtypes import torch_dtype
from mpocompress.compression.data_free import decomposed
from mpocompress.compression.job import Done, Outcome, Task, put_aside
from mpocompress.compression.reporting import dense_report, no_fewer_bytes, weighted_report
from mpocompress.compression.sensitivity import divergence_with, weigh_all
from mpocompress.compression.survey import read_matrix, survey_checkpoint
from mpocompress.compression.weighted_matrix import Stand, chosen_shape, refitted_to, standing, values_of
from mpocompress.jobs import Progress
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.quantisation import QuantisedMPO, quantise, restore, rounded
from mpocompress.mpo.sites import candidates, low_rank
from mpocompress.mpo.tt_svd import measured_error
from mpocompress.planning.plan import MatrixPlan, make_plan
from mpocompress.reports.calibration import BEYOND, CalibrationReport
from mpocompress.reports.compression import INT8, MatrixReport
from mpocompress.user.batches import Batch

SHAPES_BELOW = 0.1
"""Fraction of its parameters below which a matrix is tried in other site shapes than low rank."""


MIXES = (0.5, 0.2, 0.8)
"""Weights on the inputs of the compressed model that a refit is tried with."""


ROUNDING_COST = 0.01
"""What int8 may add to the divergence of the outputs by one matrix, as a share of it."""


ROUNDING_FREE = 1e-3
"""What it may add whatever that share is: of a nat, or of the divergence between outputs for different inputs."""


INSTEAD_OF_INT8 = "float16"


NOT_COMPARABLE = "The outputs of the compressed model are not finite, or of another shape, on calibration inputs."


NOT_SEEN = "its module runs in a way of its own, or it is not in the given model"


class _Work:
    """One compression with calibration inputs."""

    def __init__(
        self, task: Task, calibration: Calibration, *, measure: bool, jobs: int, progress: Progress | None
    ) -> None:
        self.task, self.calibration, self.progress = task, calibration, progress
        surveyed = survey_checkpoint(
            task.checkpoint,
            selection=task.selection,
            sites=task.sites,
            truncations=[task.truncation],
            jobs=jobs,
            model=task.model,
            progress=progress,
        )
        self.surveyed, self.weighed = weigh_all(
            surveyed, task.checkpoint, calibration, measure=measure or task.truncation.is_budget, progress=progress
        )

    def _tell(self, step: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(step, done, total)

    def outcome(self) -> Outcome:
        """Plan, fit, store and measure."""
        surveyed, task = self.surveyed, self.task
        plan = make_plan(surveyed.layers, surveyed.surveys, task.truncation, surveyed.other_parameters)
        entries = [self._shaped(entry) for entry in plan.matrices]
        known = {entry.matrix.name: entry for entry in entries if entry.sites and entry.matrix.name in self.weighed}
        rest = {
            entry.matrix.name: decomposed(entry, task=task, surveys=surveyed.surveys)
            for entry in entries
            if entry.matrix.name not in known
        }
        stands, alone, mix = self._fitted(known)
        done, kept = [], []
        dtypes = self._dtypes(stands)
        for entry in entries:
            name = entry.matrix.name
            if name in rest:
                done.append(rest[name])
                continue
            stand, one = self._stored(stands[name], entry, dtypes[name], alone.get(name))
            done.append(one)
            kept += [stand] if stand is not None else []
        changed = {name: value for name, value in values_of(kept).items() if name not in _members(kept)}
        report = self._measured(kept, [one for one in done if one.report.name in rest], mix)
        if report.divergence == BEYOND:
            surveyed = dataclasses.replace(surveyed, unmet=(*surveyed.unmet, NOT_COMPARABLE))
        wide = [name for name, dtype in dtypes.items() if self.task.dtype == INT8 and dtype != INT8]
        return Outcome(
            surveyed=surveyed,
            done=tuple(done),
            changed=self._as_stored(changed),
            notes=tuple(
                f"{name} is stored in {INSTEAD_OF_INT8}: int8 would move the outputs too far." for name in wide
            ),
            calibration=report,
        )

    def _as_stored(self, biases: Mapping[str, Tensor]) -> dict[str, Tensor]:
        infos = self.task.checkpoint.tensors
        return {name: value.to(torch_dtype(infos[name].dtype)) for name, value in biases.items()}

    def _shaped(self, entry: MatrixPlan) -> MatrixPlan:
        """A plan in the site shape that is best at the parameters it got."""
        weighed = self.weighed.get(entry.matrix.name)
        choice = self.task.sites
        small = entry.parameters <= SHAPES_BELOW * entry.matrix.dense_parameters
        if weighed is None or entry.sites is None or choice != "auto" or not (small and self.task.truncation.is_budget):
            return entry
        sites, bonds = chosen_shape(weighed, entry.sites, entry.bonds, candidates(*entry.matrix.shape, "auto"))
        return dataclasses.replace(entry, sites=sites, bonds=bonds, parameters=sites.parameters(bonds))

    def _fitted(self, entries: Mapping[str, MatrixPlan]) -> tuple[dict[str, Stand], dict[str, float], float]:
        """Cores for every matrix that was seen to run, what each costs alone, and the mix they were refitted with."""
        first: dict[str, Stand] = {}
        for done, (name, entry) in enumerate(entries.items()):
            self._tell("fitting", done, len(entries))
            weighed = self.weighed[name]
            first[name] = standing(weighed, weighed.fitted(entry.sites or low_rank(*weighed.matrix.shape), entry.bonds))
        rig = self.calibration.rig
        if rig is None or not first:
            return first, {}, 1.0
        alone = {name: divergence_with(rig, values_of([stand])) for name, stand in first.items()}
        mix = self._mix(rig, first) if self._pays(first) else 1.0
        if mix == 1.0:
            return first, alone, mix
        self._tell("refitting", 0, 1)
        return self._refitted(rig, first, mix, rig.batches.learning), alone, mix

    def _mix(self, rig: Rig, first: Mapping[str, Stand]) -> float:
        """The mix whose refit brings the outputs nearest to the original ones, for inputs that it was not made with."""
        found = {1.0: divergence_with(rig, values_of(first.values()))}
        for done, mix in enumerate(MIXES):
            self._tell("choosing a refit", done, len(MIXES))
            if mix == MIXES[-1] and min(found, key=lambda one: found[one]) == MIXES[-2]:
                break  # it lies between the first and none, and the first was not the best
            stands = self._refitted(rig, first, mix, rig.rest)
            found[mix] = divergence_with(rig, values_of(stands.values()))
        return min(found, key=lambda one: found[one])

    def _pays(self, stands: Mapping[str, Stand]) -> bool:
        """Whether any layer gets other inputs because of those before it, or of itself; errors asked for would grow."""
        if self.task.truncation.error_budget is not None:
            return False
        units = {stand.weighed.unit.name for stand in stands.values()}
        return len(units) > 1 or any(len(stand.weighed.unit.members) > 1 for stand in stands.values())

    def _refitted(self, rig: Rig, first: Mapping[str, Stand], mix: float, batches: Sequence[Batch]) -> dict[str, Stand]:
        """All cores fitted again, in the order in which they run."""
        by_unit: dict[str, list[str]] = {}
        for name, stand in first.items():
            by_unit.setdefault(stand.weighed.unit.name, []).append(name)
        found = dict(first)

        def fit_unit(unit: WeightGroup, moments: CrossMoments) -> Mapping[str, Tensor]:
            for name in by_unit[unit.name]:
                weighed = first[name].weighed
                target = shifted_target(weighed.weight, moments, weighed.span, mix=mix, centred=weighed.centred)
                start = first[name].mpo
                found[name] = Stand(
                    weighed=weighed,
                    mpo=refitted_to(start, target.weight, target.second, weighed.metric.outputs),
                    before=target.mean_before,
                    after=target.mean_after,
                )
            return values_of(found[name] for name in by_unit[unit.name])

        units = [unit for unit in self.calibration.units if unit.name in by_unit]
        refit(rig, units, batches, values_of(first.values()), fit_unit)
        return found

    def _dtypes(self, stands: Mapping[str, Stand]) -> dict[str, str]:
        """The dtype that the cores of every matrix are stored in: of int8, float16 where that alone costs too much."""
        chosen = {name: self.task.dtype or stand.weighed.matrix.members[0].dtype for name, stand in stands.items()}
        if self.task.dtype != INT8:
            return chosen
        rig = self.calibration.rig
        whole = divergence_with(rig, values_of(stands.values())) if rig is not None else 0.0
        free = ROUNDING_FREE * rig.scale if rig is not None else 0.0
        budget = self.task.truncation.error_budget
        for done, (name, stand) in enumerate(stands.items()):
            self._tell("rounding", done, len(stands))
            coarse = dataclasses.replace(stand, mpo=rounded(stand.mpo, torch_dtype(INT8)))
            errors = [stand.weighed.error(one.mpo.to(torch.float32).to_matrix()) for one in (stand, coarse)]
            before, after = errors[0] ** 2, errors[1] ** 2
            if rig is not None:
                before, after = whole, divergence_with(rig, values_of({**stands, name: coarse}.values()))
            missed = budget is not None and not errors[1] <= budget
            if missed or not after - before <= max(ROUNDING_COST * before, free):
                chosen[name] = INSTEAD_OF_INT8
        return chosen

    def _stored(self, stand: Stand, entry: MatrixPlan, stored: str, alone: float | None) -> tuple[Stand | None, Done]:
        """Round cores to the dtype they are stored in, measure what was lost, and put them aside."""
        norm = self.surveyed.surveys[entry.matrix.name].squared_norm
        made = quantise(stand.mpo) if stored == INT8 else stand.mpo.to(torch_dtype(stored))
        mpo = restore(made) if isinstance(made, QuantisedMPO) else made
        weight = read_matrix(entry.matrix, self.task.checkpoint)
        error = measured_error(weight, mpo, norm)
        reason = f"its cores cannot be stored as {stored}" if not math.isfinite(error) else ""
        reason = reason or no_fewer_bytes(entry.matrix, mpo.parameters, mpo.bonds, stored)
        if reason:
            dense = dense_report(entry.layer, entry.kind, entry.matrix, norm)
            return None, Done(report=dataclasses.replace(dense, reason=reason))
        weighed = stand.weighed
        report = weighted_report(
            entry,
            norm,
            mpo,
            error,
            stored,
            weighted_error=weighed.error(mpo.to(torch.float32).to_matrix()),
            bias=weighed.unit.bias if weighed.bias is not None else "",
        )
        report = dataclasses.replace(report, sensitivity=alone)
        return dataclasses.replace(stand, mpo=mpo), put_aside(report, made, self.task.spool)

    def _measured(self, stands: Sequence[Stand], others: Sequence[Done], mix: float) -> CalibrationReport:
        """The outputs of the model with what is stored, on inputs that nothing was fitted to."""
        calibration, rig = self.calibration, self.calibration.rig
        left_out = {
            matrix.name: calibration.left_out.get(matrix.members[0].name, NOT_SEEN)
            for layer in self.surveyed.layers
            for matrix in layer.forms[-1]
            if matrix.name not in self.weighed
        }
        report = CalibrationReport(
            kind=calibration.kind,
            measure=calibration.measure,
            said=calibration.said,
            samples=calibration.samples,
            held_out=0,
            divergence=None,
            unrelated=None,
            agreement=None,
            mix=mix,
            left_out=left_out,
        )
        if rig is None:
            return report
        self._tell("measuring", 0, 1)
        values = values_of(stands)
        for one in others:
            mpo = one.mpo(self.task.spool)
            if mpo is not None:
                values |= _member_values(one.report, mpo)
        with rig.holding(values):
            found = rig.compared(rig.held_out)
        return dataclasses.replace(
            report,
            held_out=rig.batches.held_out_samples,
            divergence=found.divergence,
            unrelated=rig.unrelated(rig.held_out),
            agreement=found.agreement,
        )


def _members(stands: Sequence[Stand]) -> set[str]:
    return {member.name for stand in stands for member in stand.weighed.matrix.members}


def _member_values(report: MatrixReport, mpo: MPO) -> dict[str, Tensor]:
    """The dense weights that cores stand for, in the shape they have in the checkpoint."""
    dense = mpo.to(torch.promote_types(mpo.cores[0].dtype, torch.float32)).to_matrix()
    parts = torch.split(dense, list(report.member_columns), dim=1)
    return {name: part.T if report.transposed else part for name, part in zip(report.members, parts, strict=True)}
