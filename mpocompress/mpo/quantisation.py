"""Quantise cores to 8 bits: codes from -127 to 127, and one scale per channel (index of one bond of a core)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mpocompress.errors import SitesError
from mpocompress.mpo.mpo import MPO
from mpocompress.mpo.sites import Sites

LARGEST_CODE = 127
_OF_RIGHT, _OF_LEFT = (0, 1, 2), (1, 2, 3)
"""The axes of one channel: of the right bond, or, for the last core, of the left bond."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantisedMPO:
    """An MPO in int8. An entry is its code times the scale of its channel.

    Args:
        codes: one int8 tensor a site, of the shape of its core.
        scales: one float32 tensor a site, of shape (channels,): positive numbers.
        sites: the site dims and the order of the row index.

    Raises:
        SitesError: scales that are not one for every channel.
    """

    codes: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    sites: Sites

    def __post_init__(self) -> None:
        """Check the scales; `restore` checks the chain."""
        wanted = [(count,) for count in channels([code.shape[-1] for code in self.codes[:-1]])]
        found = [tuple(scale.shape) for scale in self.scales]
        if found != wanted:
            raise SitesError(
                where="scales of an MPO in int8",
                found=f"shapes {found}",
                why=f"one scale per channel has shapes {wanted}",
                action="Pass the scales of these codes.",
            )


def channels(bonds: Sequence[int]) -> tuple[int, ...]:
    """Return the number of scales of each core: its right bond, or, for the last core, its left bond.

    Args:
        bonds: the bond of every cut; at least one.

    Example:
        >>> channels((4, 8))
        (4, 8, 8)
    """
    return (*bonds, bonds[-1])


def stored_size_bytes(parameters: int, bonds: Sequence[int], dtype: str) -> int:
    """Return the bytes of a matrix in a file, those of scales included.

    Args:
        parameters: entries of its cores, or of the dense matrix.
        bonds: the bond of every cut; empty for a dense matrix.
        dtype: name of the dtype it is stored in.

    Example:
        >>> stored_size_bytes(100, (2,), "float16"), stored_size_bytes(100, (2,), "int8")
        (200, 116)
    """
    stored: torch.dtype = getattr(torch, dtype)
    scales = sum(channels(bonds)) if stored == torch.int8 else 0
    return parameters * stored.itemsize + scales * torch.float32.itemsize


def rounded(mpo: MPO, dtype: torch.dtype) -> MPO:
    """Return an MPO as it is read back after its cores were stored in a dtype.

    Args:
        mpo: the decomposition.
        dtype: a floating dtype, or int8.

    Returns:
        A new MPO with its cores in `dtype`; for int8 in float32.
    """
    return restore(quantise(mpo)) if dtype == torch.int8 else mpo.to(dtype)


def quantise(mpo: MPO) -> QuantisedMPO:
    """Quantise the cores of an MPO to 8 bits, symmetrically and per channel.

    The scale of a channel is its largest magnitude over 127, or 1 if that is zero. It is never subnormal, so that a
    channel of numbers below about 1e-36 uses fewer codes.

    Args:
        mpo: the decomposition, with finite cores in any floating dtype.

    Returns:
        The codes and the scales. Numbers beyond the range of float32 become NaN when they are restored.

    Example:
        >>> quantised = quantise(MPO.from_cores([torch.ones(1, 3, 1, 2), torch.full((2, 1, 2, 1), 2.54)]))
        >>> quantised.codes[1].flatten().tolist(), quantised.scales[1].tolist()
        ([127, 127, 127, 127], [0.019999999552965164, 0.019999999552965164])
    """
    *first, last = mpo.cores
    pairs = [*(_quantised(core, of_left=False) for core in first), _quantised(last, of_left=True)]
    codes, scales = zip(*pairs, strict=True)
    return QuantisedMPO(codes=codes, scales=scales, sites=mpo.sites)


def restore(quantised: QuantisedMPO) -> MPO:
    """Return the MPO of codes and scales, with cores in float32.

    Args:
        quantised: the MPO in int8.

    Raises:
        SitesError: codes that do not form a chain.

    Example:
        >>> mpo = MPO.from_cores([torch.ones(1, 3, 1, 2), torch.ones(2, 1, 2, 1)])
        >>> bool(torch.allclose(restore(quantise(mpo)).to_matrix(), mpo.to_matrix()))
        True
    """
    *first, last = zip(quantised.codes, quantised.scales, strict=True)
    cores = [code * scale for code, scale in first] + [last[0] * _along_left(last[1])]
    return MPO(cores=tuple(cores), sites=quantised.sites)


def _quantised(core: Tensor, *, of_left: bool) -> tuple[Tensor, Tensor]:
    """Return the codes and scales of one core."""
    wide = core.to(torch.promote_types(core.dtype, torch.float32))
    largest = wide.abs().amax(_OF_LEFT if of_left else _OF_RIGHT)
    least = torch.finfo(torch.float32).tiny
    scale = (largest / LARGEST_CODE).to(torch.float32).clamp_min(least).where(largest > 0, 1.0)
    codes = (wide / (_along_left(scale) if of_left else scale)).round_().clamp_(-LARGEST_CODE, LARGEST_CODE)
    return codes.to(torch.int8).contiguous(), scale


def _along_left(scale: Tensor) -> Tensor:
    return scale[:, None, None, None]
