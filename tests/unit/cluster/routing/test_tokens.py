"""Prefill: load is spread by tokens, not by requests; a prompt goes where its beginning was computed if that pays."""

from __future__ import annotations

from collections import Counter

from cluster.routing.prefixes import BLOCK_TOKENS, PrefixMemory, prefix_blocks
from cluster.routing.senders import SENDER
from cluster.routing.tokens import MAX_QUEUED_TOKENS, LeastTokensRouter
from llm_workers.messages import Prompt, PromptItem
from tests.unit.cluster.routing.routing_fleet import Fleet, prefill_of

_NAMES = ["a", "b", "c"]


def _fleet(max_queued_tokens: int = 10**12) -> Fleet:
    return Fleet(LeastTokensRouter, _NAMES, **{MAX_QUEUED_TOKENS: max_queued_tokens})


def _prompt(seed: int, num_tokens: int) -> Prompt:
    return Prompt([seed * 100_000 + number for number in range(num_tokens)])


def test_a_long_prompt_weighs_as_much_as_it_computes() -> None:
    """Every tenth prompt is a hundred times as long: tokens are spread evenly, which counting requests would not do."""
    fleet = _fleet()
    tokens: Counter[str] = Counter()
    for number in range(600):
        length = 10_000 if number % 10 == 0 else 100
        tokens[fleet.send(prefill_of(_prompt(number, length)), lambda name: 1e9)] += length
    assert max(tokens.values()) - min(tokens.values()) <= 10_000


def test_a_conversation_stays_where_its_beginning_was_computed() -> None:
    fleet = _fleet()
    for seed in range(20):
        homes = set()
        for turn in range(1, 5):
            homes.add(fleet.send(prefill_of(_prompt(seed, 1000 * turn))))
            fleet.advance(2.0)
        assert len(homes) == 1


def test_a_prefix_is_not_worth_a_longer_queue() -> None:
    """All have the same beginning: its home takes them until waiting costs more than computing it again."""
    fleet = _fleet()
    home = fleet.send(prefill_of(_prompt(1, 2048)))
    fleet.advance(2.0)
    taken = [fleet.send(prefill_of(_prompt(1, 2048)), lambda name: 1e9) for _ in range(9)]
    assert taken[0] == home
    assert sorted(Counter(taken).values()) == [3, 3, 3]


def test_what_other_ingress_replicas_sent_counts() -> None:
    fleet = _fleet()
    fleet.reports["a"] = {"costs": {"other": 5000.0}}
    fleet.reports["b"] = {"costs": {"other": 5000.0}}
    assert fleet.send(prefill_of(_prompt(1, 100))) == "c"


def test_a_late_report_of_our_own_calls_moves_nothing() -> None:
    """It says what was under way then; which of it has ended since is known here."""
    fleet = _fleet()
    first = [fleet.send(prefill_of(_prompt(seed, 100))) for seed in range(3)]
    fleet.advance(2.0)
    fleet.reports["a"] = {"costs": {SENDER: 100_000.0}}
    then = [fleet.send(prefill_of(_prompt(seed, 100))) for seed in range(3, 6)]
    assert sorted(first) == sorted(then) == _NAMES


def test_a_full_replica_comes_last_even_where_the_prefix_is() -> None:
    fleet = _fleet(max_queued_tokens=1000)
    home = fleet.send(prefill_of(_prompt(1, 8192)))
    assert fleet.send(prefill_of(_prompt(1, 8192))) != home


def test_calls_without_a_prompt_take_turns() -> None:
    fleet = _fleet()
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
