"""Prefill: load is spread by tokens, not by requests; a prompt goes where its beginning was computed if that pays."""

from __future__ import annotations

from collections import Counter

from cluster.routing.prefixes import BLOCK_TOKENS, PrefixMemory, prefix_blocks
from cluster.routing.tokens import LeastTokensRouter
from llm_workers.messages import Prompt, PromptItem
from tests.unit.cluster.routing.routing_fleet import Fleet, prefill_of

_NAMES = ["a", "b", "c"]


def _prompt(seed: int, num_tokens: int) -> Prompt:
    return Prompt([seed * 100_000 + number for number in range(num_tokens)])


def test_a_long_prompt_weighs_as_much_as_it_computes() -> None:
    """Every tenth prompt is a hundred times as long: tokens are spread evenly, which counting requests would not do."""
    fleet = Fleet(LeastTokensRouter, _NAMES)
    tokens: Counter[str] = Counter()
    for number in range(600):
        length = 10_000 if number % 10 == 0 else 100
        tokens[fleet.send(prefill_of(_prompt(number, length)), lambda name: 1e9)] += length
    assert max(tokens.values()) - min(tokens.values()) <= 10_000


def test_a_conversation_stays_where_its_beginning_was_computed() -> None:
    fleet = Fleet(LeastTokensRouter, _NAMES)
    for seed in range(20):
        homes = set()
        for turn in range(1, 5):
            homes.add(fleet.send(prefill_of(_prompt(seed, 1000 * turn))))
            fleet.advance(2.0)
        assert len(homes) == 1


def test_a_prefix_is_not_worth_a_longer_queue() -> None:
    """All have the same beginning: its home takes them until waiting costs more than computing it again."""
    fleet = Fleet(LeastTokensRouter, _NAMES)
    home = fleet.send(prefill_of(_prompt(1, 2048)))
    fleet.advance(2.0)
    taken = [fleet.send(prefill_of(_prompt(1, 2048)), lambda name: 1e9) for _ in range(9)]
    assert taken[0] == home
    assert sorted(Counter(taken).values()) == [3, 3, 3]


def test_what_other_ingress_replicas_sent_counts() -> None:
    fleet = Fleet(LeastTokensRouter, _NAMES)
    fleet.reports["a"] = {"unanswered_tokens": 5000}
    fleet.reports["b"] = {"unanswered_tokens": 5000}
    assert fleet.send(prefill_of(_prompt(1, 100))) == "c"


def test_calls_without_a_prompt_take_turns() -> None:
    fleet = Fleet(LeastTokensRouter, _NAMES)
    assert Counter(fleet.send("stats") for _ in range(9)) == dict.fromkeys(_NAMES, 3)


def test_a_block_is_named_after_all_before_it_its_pictures_and_its_tenant() -> None:
    def with_picture(key: str, salt: str | None = None) -> list[bytes]:
        item = PromptItem("image", key, BLOCK_TOKENS + 10, BLOCK_TOKENS, ())
        return prefix_blocks(Prompt([7] * (4 * BLOCK_TOKENS + 5), (item,), cache_salt=salt))

    cat, dog = with_picture("cat"), with_picture("dog")
    assert len(cat) == len(set(cat)) == 4
    assert [one == other for one, other in zip(cat, dog, strict=True)] == [True, False, False, False]
    assert not set(cat) & set(with_picture("cat", "tenant"))


def test_memory_is_bounded_and_forgets_the_oldest() -> None:
    memory = PrefixMemory(max_blocks=8)
    prompts = [prefix_blocks(_prompt(seed, 4 * BLOCK_TOKENS)) for seed in range(3)]
    for blocks in prompts:
        memory.sent("a", blocks)
    held = [memory.num_held_tokens("a", blocks) for blocks in prompts]
    assert held == [0, 4 * BLOCK_TOKENS, 4 * BLOCK_TOKENS]
    memory.keep(["b"])
    assert memory.num_held_tokens("a", prompts[2]) == 0
