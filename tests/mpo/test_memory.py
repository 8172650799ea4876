"""Memory of large tensors is reused, and only when it is free."""

from __future__ import annotations

import torch

from mpocompress.mpo.memory import KEPT_BYTES, empty, keeping_memory


def test_kept_memory_is_reused_only_when_no_tensor_uses_it() -> None:
    shape = (KEPT_BYTES // 4,)
    with keeping_memory():
        first = empty(shape, torch.float32)
        view, place = first[3:5], first.data_ptr()
        del first
        second = empty(shape, torch.float32)
        assert second.data_ptr() != place
        del view, second
        addresses = {empty(shape, torch.float32).data_ptr() for _ in range(3)}
        assert len(addresses) == 1
