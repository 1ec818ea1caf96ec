"""What runs inside vLLM's own processes (EngineCore, workers), where the host has no hand otherwise.

`register` is a `vllm.general_plugins` entry point: vLLM calls it in every process of an engine. `WorkerExtension`
is mixed into vLLM's worker class and answers over `collective_rpc`.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

from vllm_proxy.engine_host.engines.engine_owner import OWNER_VARIABLE

#: The entry point's name; VLLM_PLUGINS must list it.
PLUGIN_NAME = "vllm_proxy"

#: Set by the host for an engine that it runs by its start command: the plugin is wanted there too.
PLUGIN_VARIABLE = "VLLM_PROXY_ENGINE_PLUGIN"

_PR_SET_PDEATHSIG = 1


def register() -> None:
    """Called by vLLM in each of its processes. Does nothing in the host itself and outside of a host."""
    owner = os.environ.get(OWNER_VARIABLE)
    if owner is None and PLUGIN_VARIABLE not in os.environ:
        return
    if owner is not None and owner.startswith(f"{os.getpid()}:"):
        return
    _die_with_parent()
    skip_rows_without_adapter()


def _die_with_parent() -> None:
    """Makes the kernel kill this process when its parent's thread that started it ends (prctl(2))."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent.pid:  # it died before the call above
        os._exit(1)


def skip_rows_without_adapter() -> None:
    """Keeps base requests out of adapters' weights in vLLM's torch LoRA operators.

    vLLM marks a row without adapter by index -1. The Triton kernels skip it; the torch operators that CPUs use
    (`vllm/lora/ops/torch_ops/lora_ops.py`, 0.32) read it as the last slot, so a base request answers in the voice
    of whatever adapter is or was there. The operators are probed first and wrapped only if they do so.

    A spare slot holding a zero adapter would cure it too, but vLLM's scheduler takes `max_loras` for both the slots
    and the adapters of one batch: with every slot wanted at once it would evict an adapter of the running batch.
    """
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    if operators_skip_rows():
        return
    for name, sliced in (("bgmv_expand", False), ("bgmv_expand_slice", True)):
        wrapped = _skipping(getattr(lora_ops, name), sliced)
        for module in (lora_ops, torch_ops, punica_cpu):
            if hasattr(module, name):
                setattr(module, name, wrapped)


def _skipping(expand: Callable[..., None], sliced: bool) -> Callable[..., None]:
    """`expand` without effect on rows of index -1. No data-dependent shapes: torch.compile may trace it."""
    import torch

    def skipping(
        inputs: Any, weights: Any, output: Any, indices: Any, *where: int, add_inputs: bool = True, **slices: int
    ) -> None:
        if sliced:
            offset = where[0] if where else slices["slice_offset"]
            size = where[1] if len(where) > 1 else slices["slice_size"]
            add_inputs = bool(where[2]) if len(where) > 2 else add_inputs
            arguments: tuple[Any, ...] = (offset, size, add_inputs)
            region = output[: indices.shape[0], offset : offset + size]
        else:
            add_inputs = bool(where[0]) if where else add_inputs
            arguments = (add_inputs,)
            region = output[: indices.shape[0]]
        before = region.clone()
        expand(inputs, weights, output, indices, *arguments)
        region.copy_(torch.where((indices < 0).unsqueeze(1), before, region))

    return skipping


def operators_skip_rows() -> bool:
    """Whether the torch LoRA operators leave a row of index -1 alone, tried on two rows."""
    import torch
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    indices = torch.tensor([-1, 0])
    weights = torch.ones(2, 1, 2, 1)
    for module in (lora_ops, punica_cpu):
        whole, part = torch.zeros(2, 2), torch.zeros(2, 2)
        module.bgmv_expand(torch.ones(2, 1), weights, whole, indices, True)
        module.bgmv_expand_slice(torch.ones(2, 1), weights, part, indices, 0, 2, True)
        expected = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        if not (torch.equal(whole, expected) and torch.equal(part, expected)):
            return False
    return True


class WorkerExtension:
    """Mixed into vLLM's worker (`--worker-extension-cls`). Answers are plain values, as the transport wants."""

    model_runner: Any

    def vllm_proxy_lora_facts(self) -> dict[str, Any]:
        """What adapters must fit, read off the loaded model's own LoRA layers.

        `modules`: the suffixes that take weights. `shapes`: suffix -> [output size, input size] where all layers
        agree and the tensors are whole (one tensor-parallel rank). `rows_skipped`: see skip_rows_without_adapter;
        None where other operators run.
        """
        from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
        from vllm.platforms import current_platform

        manager = self.model_runner.lora_manager._adapter_manager
        packed = manager.packed_modules_mapping
        modules = {part for name in manager.supported_lora_modules for part in packed.get(name, [name])}
        seen: dict[str, set[tuple[int, int]]] = {}
        for name, layer in manager.modules.items():
            if not isinstance(layer, BaseLinearLayerWithLoRA) or getattr(layer, "tp_size", 1) != 1:
                continue
            suffix = name.rsplit(".", 1)[-1]
            parts = packed.get(suffix, [suffix])
            if len(parts) != len(layer.lora_a_stacked):
                continue
            for part, a, b in zip(parts, layer.lora_a_stacked, layer.lora_b_stacked, strict=True):
                seen.setdefault(part, set()).add((b.shape[-2], a.shape[-1]))
        torch_operators = current_platform.get_punica_wrapper().endswith("PunicaWrapperCPU")
        return {
            "modules": sorted(modules),
            "shapes": {part: list(next(iter(sizes))) for part, sizes in seen.items() if len(sizes) == 1},
            "rows_skipped": operators_skip_rows() if torch_operators else None,
        }
