"""Expands the placeholders of a tokenised chat prompt to the tokens that each item takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vllm.exceptions import VLLMValidationError
from vllm.tokenizers import TokenizerLike

from cluster.ingress.placeholder_rules import Expansion, PlaceholderRule
from encoder_workers.told_placeholders import without_told
from llm_workers.messages import PromptItem
from transfer import EncodeTicket, Modality

Rules = Mapping[Modality, PlaceholderRule]
Tickets = Mapping[Modality, Sequence[EncodeTicket]]


def expand_placeholders(
    token_ids: Sequence[int], rules: Rules, tickets: Tickets, tokenizer: TokenizerLike
) -> tuple[list[int], tuple[PromptItem, ...]]:
    """The prompt with every placeholder expanded, and where each item's tokens stand.

    Args:
        token_ids: prompt as the chat template gives it, one placeholder per item.
        rules: how each modality's placeholder looks and what it becomes.
        tickets: the items of each modality, in the order of their placeholders.
        tokenizer: the one that made `token_ids`; a placeholder of several tokens may have been merged with its
            neighbours, and is then looked for in the text, as vLLM does.

    Raises:
        VLLMValidationError: the prompt has another number of placeholders than items, for example because the text
            of a message contains a placeholder itself.
    """
    walk = _Walk(rules, tickets)
    walk.over(token_ids)
    if not walk.mismatch() or all(len(rule.target) == 1 for rule in rules.values()):
        walk.require_all()
        return walk.expanded, tuple(walk.items)
    return _expand_in_text(tokenizer.decode(list(token_ids)), rules, tickets, tokenizer)


@dataclass
class _Walk:
    """One pass over a prompt: `targets` by their first token."""

    rules: Rules
    tickets: Tickets
    expanded: list[int] = field(default_factory=list)
    items: list[PromptItem] = field(default_factory=list)
    used: dict[Modality, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.used = dict.fromkeys(self.tickets, 0)

    def over(self, token_ids: Sequence[int]) -> None:
        first = {rule.target[0]: (modality, rule) for modality, rule in self.rules.items()}
        position = 0
        while position < len(token_ids):
            modality, rule = first.get(token_ids[position], (None, None))
            if modality is None or rule is None or not _stands_at(rule.target, token_ids, position):
                self.expanded.append(token_ids[position])
                position += 1
                continue
            position += len(rule.target)
            ticket = self.next_ticket(modality)
            if ticket is not None:
                self.add(ticket, rule.expand(ticket))

    def next_ticket(self, modality: Modality) -> EncodeTicket | None:
        """The item that the next placeholder of this modality stands for; None when there are no more."""
        index = self.used.get(modality, 0)
        self.used[modality] = index + 1
        of_modality = self.tickets.get(modality, ())
        return of_modality[index] if index < len(of_modality) else None

    def add(self, ticket: EncodeTicket, expansion: Expansion) -> None:
        self.items.append(item_at(len(self.expanded), ticket, expansion))
        self.expanded.extend(expansion.token_ids)

    def mismatch(self) -> str | None:
        """What is wrong with the number of placeholders found, if anything."""
        for modality, number in self.used.items():
            num_items = len(self.tickets.get(modality, ()))
            if number != num_items:
                return (
                    f"the prompt has {number} {modality} placeholders for {num_items} items; "
                    "message text must not contain placeholder tokens"
                )
        return None

    def require_all(self) -> None:
        problem = self.mismatch()
        if problem is not None:
            raise VLLMValidationError(problem)


def item_at(offset: int, ticket: EncodeTicket, expansion: Expansion) -> PromptItem:
    """The item whose expansion begins at `offset` of the prompt."""
    assert sum(length for _, length in expansion.embed_runs) == ticket.num_tokens, (ticket, expansion.embed_runs)
    whole = expansion.embed_runs == ((0, len(expansion.token_ids)),)
    return PromptItem(
        modality=ticket.modality,
        key=ticket.item_key,
        offset=offset,
        length=len(expansion.token_ids),
        metadata=without_told(ticket.metadata),
        embed_runs=() if whole else expansion.embed_runs,
    )


def _expand_in_text(
    text: str, rules: Rules, tickets: Tickets, tokenizer: TokenizerLike
) -> tuple[list[int], tuple[PromptItem, ...]]:
    """Expands in the prompt's text, and tokenises the whole again; models with such placeholders have one modality."""
    ((modality, rule),) = rules.items()
    before, *after = text.split(tokenizer.decode(list(rule.target)))
    walk = _Walk(rules, tickets)
    taken = [ticket for _ in after if (ticket := walk.next_ticket(modality)) is not None]
    walk.require_all()
    expansions = [rule.expand(ticket) for ticket in taken]
    pieces = [before]
    for expansion, piece in zip(expansions, after, strict=True):
        pieces += [tokenizer.decode(list(expansion.token_ids)), piece]
    expanded = list(tokenizer.encode("".join(pieces), add_special_tokens=False))
    items: list[PromptItem] = []
    position = 0
    for ticket, expansion in zip(taken, expansions, strict=True):
        while not _stands_at(expansion.token_ids, expanded, position):
            position += 1
            if position >= len(expanded):
                raise VLLMValidationError(f"the prompt's {modality} placeholders cannot be tokenised")
        items.append(item_at(position, ticket, expansion))
        position += len(expansion.token_ids)
    return expanded, tuple(items)


def _stands_at(wanted: Sequence[int], token_ids: Sequence[int], position: int) -> bool:
    return list(token_ids[position : position + len(wanted)]) == list(wanted)
