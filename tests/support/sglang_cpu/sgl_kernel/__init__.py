"""TEST ONLY: stands in for SGLang's kernels on a CPU. See sitecustomize.py beside it.

The names are those that SGLang 0.5.23 imports on a CPU. The one that is called without speculative decoding is
written in torch; the others refuse.
"""

from __future__ import annotations

from typing import Any, NoReturn


def assign_req_to_token_pool_cpu(
    req_pool_indices: Any, req_to_token: Any, start: Any, end: Any, locations: Any, *_: Any
) -> None:
    """Writes each request's new KV locations into its row, from `start` to `end`."""
    at = 0
    for row, first, last in zip(req_pool_indices.tolist(), start.tolist(), end.tolist(), strict=True):
        req_to_token[row, first:last] = locations[at : at + last - first].to(req_to_token.dtype)
        at += last - first


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise NotImplementedError("a kernel of SGLang that the test-only stub has not")


copy_all_layer_kv_cache_cpu = _refuse
build_tree_kernel_efficient_cpu = _refuse
verify_tree_greedy_cpu = _refuse
assign_draft_cache_locs_contiguous_cpu = _refuse
assign_extend_cache_locs_cpu = _refuse
fill_accept_out_cache_loc_cpu = _refuse
fill_bonus_tokens_cpu = _refuse
