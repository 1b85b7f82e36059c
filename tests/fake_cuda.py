"""A GPU that isn't there: torch's fake tensors, which have shapes, types and devices and no bytes.

What reads a value of a fake tensor raises, so code that runs through never waits for the device;
mixed devices raise too, those that torch's own check lets through included.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda:0")
_COPIES = ("_to_copy", "copy_", "to")
_CUDA, _META = 1, 14
"""Numbers of c10::DeviceType."""


class Recorded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What ran on the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, tuple[int, ...]]] = []
        """Names of operators with the shape of each tensor that they made there."""
        self.largest = 0
        """Items of the largest tensor that was made there, views left out."""
        self.uploads = 0
        """Copies of host tensors to the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        memory = {t.untyped_storage()._cdata for t in given}
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor) and _there(t)]
        # A number on the host may take part in anything.
        kinds = {t.device.type for t in given if t.dim() or _there(t)}
        if name in _COPIES:
            self.uploads += "cpu" in kinds and bool(made)
        else:
            assert len(kinds) < 2, f"{name} takes tensors of {kinds}"
        for tensor in made:
            self.calls.append((name, tuple(tensor.shape)))
            if tensor.untyped_storage()._cdata not in memory:  # no view
                self.largest = max(self.largest, tensor.numel())
        return out

    def clear(self) -> None:
        """Forgets what was recorded."""
        self.calls.clear()
        self.largest = self.uploads = 0

    def named(self, *names: str) -> list[tuple[int, ...]]:
        """Shapes of what operators of these names made."""
        return [shape for name, shape in self.calls if name in names]


def _there(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cuda"


@contextmanager
def fake_cuda() -> Iterator[Recorded]:
    """Tensors are fake inside, on ``CUDA`` or the CPU."""
    with _guarded(), FakeTensorMode(allow_non_fake_inputs=True), Recorded() as recorded:
        yield recorded


@contextmanager
def _guarded() -> Iterator[None]:
    """torch built for the CPU alone has nothing that switches to a GPU, and its views ask for it:
    the switch of the meta device, which does nothing, takes its place."""
    folder = Path(torch.__file__).parent / "lib"
    library = ctypes.CDLL(str(folder / "libc10.so"))
    switches = (ctypes.c_void_p * (_META + 1)).in_dll(
        library, "_ZN3c104impl26device_guard_impl_registryE"
    )
    own = switches[_CUDA]
    switches[_CUDA] = own or switches[_META]
    try:
        yield
    finally:
        switches[_CUDA] = own
