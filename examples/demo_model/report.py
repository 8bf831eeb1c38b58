"""Count right answers by question type and write them down."""

import collections
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from examples.demo_model.generator import QUESTION_KINDS, Example, is_right


@dataclass(frozen=True, slots=True)
class Score:
    """``num_right`` of ``num_asked`` questions of one type (or of all) were answered right."""

    num_right: int
    num_asked: int

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_asked


@dataclass(frozen=True, slots=True)
class Miss:
    """A question that was answered wrongly; ``seed`` draws its pictures again."""

    seed: int
    kind: str
    question: str
    wanted: str
    given: str


@dataclass(frozen=True, slots=True)
class Report:
    """Scores by question type, of all together, and every miss."""

    overall: Score
    by_kind: dict[str, Score]
    misses: tuple[Miss, ...]

    def table(self) -> str:
        lines = [f"{'question type':<16}{'right':>8}{'asked':>8}{'accuracy':>10}"]
        for kind, score in [*self.by_kind.items(), ("all", self.overall)]:
            lines.append(f"{kind:<16}{score.num_right:>8}{score.num_asked:>8}{score.accuracy:>10.3f}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, object]:
        return {
            "overall": asdict(self.overall) | {"accuracy": self.overall.accuracy},
            "by_kind": {kind: asdict(score) | {"accuracy": score.accuracy} for kind, score in self.by_kind.items()},
            "misses": [asdict(miss) for miss in self.misses],
        }


def score(examples: Sequence[Example], answers: Sequence[str]) -> Report:
    """Compare ``answers`` with the truth, one for each of ``examples``."""
    asked: collections.Counter[str] = collections.Counter()
    right: collections.Counter[str] = collections.Counter()
    misses: list[Miss] = []
    for made, given in zip(examples, answers, strict=True):
        question = made.question
        asked[question.kind] += 1
        if is_right(question, given):
            right[question.kind] += 1
        else:
            misses.append(Miss(made.seed, question.kind, question.text, question.answer, given))
    by_kind = {kind: Score(right[kind], asked[kind]) for kind in QUESTION_KINDS if asked[kind]}
    return Report(Score(right.total(), asked.total()), by_kind, tuple(misses))
