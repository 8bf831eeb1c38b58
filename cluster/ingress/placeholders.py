"""Expands the placeholders of a tokenised chat prompt to the number of tokens that each item has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm.exceptions import VLLMValidationError

from llm_workers.messages import PromptItem
from transfer import EncodeTicket, Modality


def expand_placeholders(
    token_ids: Sequence[int],
    placeholder_ids: Mapping[int, Modality],
    tickets: Mapping[Modality, Sequence[EncodeTicket]],
) -> tuple[list[int], tuple[PromptItem, ...]]:
    """The prompt with every placeholder token repeated, and where each item's tokens stand.

    Args:
        token_ids: prompt as the chat template gives it, one placeholder token per item.
        placeholder_ids: the placeholder token ids and the modality of each.
        tickets: the items of each modality, in the order of their placeholders.

    Raises:
        VLLMValidationError: the prompt has another number of placeholders than items, for example because the text
            of a message contains a placeholder itself.
    """
    expanded: list[int] = []
    items: list[PromptItem] = []
    used: dict[Modality, int] = dict.fromkeys(tickets, 0)
    for token_id in token_ids:
        modality = placeholder_ids.get(token_id)
        if modality is None:
            expanded.append(token_id)
            continue
        of_modality = tickets.get(modality, ())
        index = used.get(modality, 0)
        used[modality] = index + 1
        if index >= len(of_modality):
            continue
        ticket = of_modality[index]
        items.append(PromptItem(modality, ticket.item_key, len(expanded), ticket.num_tokens, ticket.metadata))
        expanded.extend([token_id] * ticket.num_tokens)
    for modality, number in used.items():
        if number != len(tickets.get(modality, ())):
            raise VLLMValidationError(
                f"the prompt has {number} {modality} placeholders for {len(tickets.get(modality, ()))} items; "
                f"message text must not contain placeholder tokens"
            )
    return expanded, tuple(items)
