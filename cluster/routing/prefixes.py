"""Which replica has computed the beginning of a prompt lately, as far as the router that sent it there knows.

Prompts are cut into blocks, and each block is named after itself and all before it: token ids, the content of the media
items that stand in it, and the salt that keeps tenants apart, as in vLLM's own prefix cache. What an engine has evicted
since is not known here; then the prompt is computed again, at the replica that was thought to have it.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Collection, Sequence

from llm_workers.messages import Prompt

BLOCK_TOKENS = 128
MAX_BLOCKS = 32_768
"""Blocks remembered of each replica: four million tokens, some 4 MiB."""


def prefix_blocks(prompt: Prompt) -> list[bytes]:
    """The names of the prompt's whole blocks, in order."""
    name = (prompt.cache_salt or "").encode()
    blocks = []
    for start in range(0, len(prompt.token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        end = start + BLOCK_TOKENS
        digest = hashlib.blake2b(name, digest_size=16)
        digest.update(array("Q", prompt.token_ids[start:end]))
        for item in prompt.items:
            if item.offset < end and item.offset + item.length > start:
                digest.update(item.key.encode())
        name = digest.digest()
        blocks.append(name)
    return blocks


class PrefixMemory:
    """The latest blocks of each replica."""

    def __init__(self, max_blocks: int = MAX_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._held: dict[str, OrderedDict[bytes, None]] = {}

    def sent(self, name: str, blocks: Sequence[bytes]) -> None:
        """A prompt of these blocks is computed at this replica."""
        held = self._held.setdefault(name, OrderedDict())
        for block in blocks:
            held[block] = None
            held.move_to_end(block)
        while len(held) > self._max_blocks:
            held.popitem(last=False)

    def num_held_tokens(self, name: str, blocks: Sequence[bytes]) -> int:
        """Tokens at the beginning of such a prompt that this replica need not compute."""
        held = self._held.get(name, OrderedDict())
        number = 0
        for block in blocks:
            if block not in held:
                break
            number += BLOCK_TOKENS
        return number

    def keep(self, names: Collection[str]) -> None:
        """Forget the replicas that are gone."""
        for name in self._held.keys() - set(names):
            del self._held[name]
