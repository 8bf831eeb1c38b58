"""What belongs to one request on its way through the stages, and to one sequence that it asks for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from vllm.sampling_params import SamplingParams

from cluster.deadline import Deadline
from cluster.leases import RequestLeases
from cluster.trace import RequestTrace
from llm_workers.messages import GenerateOptions, Prompt
from transfer import EmbeddingRef, EncodeTicket, MediaItem, OptionValue


class AskedTickets:
    """The tickets that a request has asked for; its end cancels those that nobody waited for.

    Attributes:
        taken: whether the request has had all tickets of a prompt, so that the encoders have worked for it.
    """

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[TicketedItem]] = []
        self.taken = False

    def add(self, task: asyncio.Task[TicketedItem]) -> None:
        """Take one more."""
        self._tasks.append(task)

    def close(self) -> None:
        """Cancel what still runs; a ticket that comes nevertheless is given up by the request's leases."""
        for task in self._tasks:
            if not task.cancel() and not task.cancelled():
                task.exception()  # Seen, so that asyncio does not report it as lost.


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What belongs to one request on its whole way."""

    request_id: str
    tenant: str
    deadline: Deadline
    leases: RequestLeases
    trace: RequestTrace
    asked: AskedTickets


@dataclass(frozen=True, slots=True)
class TicketedItem:
    """A media item and its ticket; the media is kept so that the item can be encoded again when an encoder dies."""

    media: MediaItem
    options: tuple[tuple[str, OptionValue], ...]
    ticket: EncodeTicket


@dataclass(frozen=True, slots=True)
class Generation:
    """One sequence to generate: a rendered prompt, the items in it, and how to sample."""

    request_id: str
    prompt: Prompt
    items: tuple[TicketedItem, ...]
    params: SamplingParams
    options: GenerateOptions

    def refs(self) -> tuple[EmbeddingRef, ...]:
        """One reference per distinct item."""
        return tuple({item.ticket.item_key: item.ticket.ref() for item in self.items}.values())

    def spare_refs(self) -> tuple[EmbeddingRef, ...]:
        """The references beyond those: each occurrence of an item has a ticket, an engine fetches one of them."""
        fetched = {ref.transfer_id for ref in self.refs()}
        return tuple(ref for item in self.items if (ref := item.ticket.ref()).transfer_id not in fetched)
