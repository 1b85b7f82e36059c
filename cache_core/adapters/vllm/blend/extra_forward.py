"""Runs forward passes of vLLM's own model over chosen tokens, inside or between its steps.

Every run of consecutive positions is presented to the attention backend as a sequence of its own:
as many queries as the run is long, keys up to the run's end, the request's block table. So each
token sees exactly the keys up to its own position, with the backend's own kernels and no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.forward_context import set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from cache_core.adapters.vllm.worker.kv_blocks import slots_of
from cache_core.blend.rope import Rope


@dataclass(frozen=True, slots=True)
class ForwardRows:
    """Tokens of one sequence to compute: ids and their ascending positions, ``[n]``, and the
    sequence's blocks from position 0 on."""

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    blocks: NDArray[np.int32]


class ExtraForward:
    """Computes KV (and nothing else) in vLLM's blocks. ``runner`` is vLLM's model runner.

    Raises ``ValueError`` for a runner that this can't work with.
    """

    def __init__(self, runner: Any, config: Any, block_tokens: int) -> None:
        if not hasattr(runner, "attn_groups") or len(runner.attn_groups) != 1:
            raise ValueError(f"blend can't use vLLM's {type(runner).__name__}; set no V2 runner")
        self._runner, self._config, self._block_tokens = runner, config, block_tokens
        self._most = int(config.scheduler_config.max_num_batched_tokens)
        self.rope = model_rope(runner.model)

    @torch.inference_mode()
    def run(self, rows: Sequence[ForwardRows]) -> None:
        """Overwrites the KV of the tokens in ``rows``. Rows of one sequence see each other's new KV
        layer by layer, and what is in the blocks for the rest."""
        for part in _parts(rows, self._most):
            self._forward(part)

    def _forward(self, rows: Sequence[ForwardRows]) -> None:
        starts, ends, owners = [], [], []
        for owner, one in enumerate(rows):
            breaks = np.flatnonzero(np.diff(one.positions) != 1) + 1
            for run in np.split(one.positions, breaks):
                starts.append(int(run[0]))
                ends.append(int(run[-1]) + 1)
                owners.append(owner)
        lengths = np.array(ends) - np.array(starts)
        query_start = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        width = max(-(-end // self._block_tokens) for end in ends)
        table = np.zeros((len(ends), width), dtype=np.int32)
        for row, (end, owner) in enumerate(zip(ends, owners, strict=True)):
            count = -(-end // self._block_tokens)
            table[row, :count] = rows[owner].blocks[:count]
        slots = np.concatenate(
            [self._slots(one.blocks, one.positions) for one in rows], dtype=np.int64
        )
        positions = np.concatenate([one.positions for one in rows]).astype(np.int64)
        tokens = np.concatenate([one.tokens for one in rows])
        device = self._runner.device

        def tensor(values: Any, dtype: torch.dtype) -> torch.Tensor:
            return torch.as_tensor(np.ascontiguousarray(values), dtype=dtype, device=device)

        slot_mapping = tensor(slots, torch.int64)
        common = CommonAttentionMetadata(
            query_start_loc=tensor(query_start, torch.int32),
            query_start_loc_cpu=torch.from_numpy(query_start),
            seq_lens=tensor(ends, torch.int32),
            num_reqs=len(ends),
            num_actual_tokens=len(tokens),
            max_query_len=int(lengths.max()),
            max_seq_len=max(ends),
            block_table_tensor=tensor(table, torch.int32),
            slot_mapping=slot_mapping,
            causal=True,
            positions=tensor(positions, torch.int64),
        )
        metadata: dict[str, Any] = {}
        mapping: dict[str, torch.Tensor] = {}
        for group in self._runner.attn_groups[0]:
            built = group.metadata_builders[0].build(0, common)
            for name in group.layer_names:
                metadata[name], mapping[name] = built, slot_mapping
        with set_forward_context(
            metadata,
            self._config,
            num_tokens=len(tokens),
            slot_mapping=mapping,
            skip_compiled=True,
        ):
            self._runner.model(
                input_ids=tensor(tokens, torch.int32),
                positions=tensor(positions, torch.int64),
                intermediate_tensors=None,
                inputs_embeds=None,
            )

    def _slots(self, blocks: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[np.int64]:
        last = int(positions[-1]) + 1
        return slots_of(blocks, self._block_tokens, range(last))[positions]


def model_rope(model: Any) -> Rope:
    """Returns the rotation that the model's own table of cosines and sines describes. Raises
    ``ValueError`` for a RoPE whose frequencies depend on the prompt."""
    found = [m for m in model.modules() if getattr(m, "cos_sin_cache", None) is not None]
    if not found:
        raise ValueError("blend needs rotary positions; this model has none")
    rotary = found[0]
    kind = type(rotary).__name__
    if any(word in kind for word in ("Dynamic", "LongRoPE", "MRotary", "DualChunk")):
        raise ValueError(f"blend can't turn K of {kind}: its angles depend on the prompt")
    # Position 1 turns each pair by its frequency. Scalings such as YaRN's stretch cosine and sine
    # alike, which the angle does not see.
    cos, sin = rotary.cos_sin_cache[1].double().cpu().chunk(2)
    return Rope(torch.atan2(sin, cos).numpy(), "neox" if rotary.is_neox_style else "gptj")


def _parts(rows: Sequence[ForwardRows], most: int) -> list[list[ForwardRows]]:
    """Cuts rows so that each forward has at most ``most`` tokens; earlier positions go first."""
    parts: list[list[ForwardRows]] = [[]]
    room = most
    for one in rows:
        at = 0
        while at < len(one.tokens):
            if room == 0:
                parts.append([])
                room = most
            end = min(len(one.tokens), at + room)
            parts[-1].append(ForwardRows(one.tokens[at:end], one.positions[at:end], one.blocks))
            room -= end - at
            at = end
    return [part for part in parts if part]
