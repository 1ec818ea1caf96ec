"""TEST ONLY. Lets the SGLang that PyPI publishes run on a CPU, when this folder stands on PYTHONPATH.

PyPI has no CPU build of SGLang's kernels (`sgl_kernel`), nor of torchvision beside a CPU torch. What runs with this
is SGLang's real scheduler, tokenizer, LoRA and API over PyTorch's own operators (`--attention-backend torch_native
--lora-backend torch_native`); the kernels are the stub package beside this file. It is no way to serve anybody.

Python imports this module at the start of every process, SGLang's own children included.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

_kept: list[object] = []


class _AfterTorch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Adds what is missing as soon as torch has been imported, and imports torch no sooner than others do."""

    def __init__(self) -> None:
        self._loader: importlib.abc.Loader | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        assert self._loader is not None
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert self._loader is not None
        self._loader.exec_module(module)
        _complete(module)


def _complete(torch: ModuleType) -> None:
    # torchvision registers its operators' shapes at import; without its C++ library nobody has declared them.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)  # one that is collected takes its declarations with it
    # Pinned memory is a GPU's; SGLang's LoRA code asks for it anyway.
    torch.Tensor.pin_memory = lambda tensor, *_: tensor
    for name in ("empty", "zeros", "tensor"):
        setattr(torch, name, _without_pinning(getattr(torch, name)))


def _without_pinning(create):  # type: ignore[no-untyped-def]
    def created(*arguments, **options):  # type: ignore[no-untyped-def]
        options.pop("pin_memory", None)
        return create(*arguments, **options)

    return created


sys.meta_path.insert(0, _AfterTorch())
