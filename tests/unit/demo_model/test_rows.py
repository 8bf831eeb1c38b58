"""The training path computes what Hugging Face's own modules compute, and packing changes no answer."""

import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoProcessor

from examples.demo_model import chat, layout
from examples.demo_model.batches import BatchMaker, Mixture, pictures_of
from examples.demo_model.export import export, to_hugging_face
from examples.demo_model.generator import TRAIN_SEEDS
from examples.demo_model.network import Network
from examples.demo_model.objective import attention_bias, normalise, raster
from examples.demo_model.painting import paint
from examples.demo_model.questions import questions_about
from examples.demo_model.rows import RowBuilder, pack
from examples.demo_model.scene import sample_shape_scene
from examples.demo_model.train import initialise


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(5)
    made = Network(chat.VOCAB_SIZE)
    initialise(made)
    for parameter in made.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    return made


@pytest.mark.parametrize("size", [(300, 220), (112, 448), (448, 448)], ids=str)
def test_packed_questions_get_the_logits_of_separate_prompts(
    network: Network, tmp_path: Path, size: tuple[int, int]
) -> None:
    tokenizer = chat.build_tokenizer()
    export(network, tokenizer, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    reference = to_hugging_face(network, tokenizer)
    rng = random.Random(3)
    scene = sample_shape_scene(rng, 3, size)
    questions = [question for group in questions_about(scene, rng).values() for question in group][:3]
    builder = RowBuilder(tokenizer)
    grid = layout.grid_of(*size)
    rows = pack([builder.branched([grid], [[question] for question in questions], system=False)])
    ids = torch.from_numpy(rows.ids)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        visual = raster(network.visual(normalise(pictures_of([scene])), grid), grid)
        bias = attention_bias(torch.from_numpy(rows.branches))
        is_visual = ids == builder.image_pad
        asked = torch.from_numpy(rows.target_rows), torch.from_numpy(rows.target_places)
        hidden, _ = network.language_model(ids, visual[0], is_visual, torch.from_numpy(rows.positions), bias, asked)
        packed = F.linear(hidden, network.language_model.embed_tokens.weight)
        separate = []
        for question in questions:
            content = [{"type": "image"}, {"type": "text", "text": question.text}]
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            text = [prompt + question.answer + chat.END]
            inputs = processor(text=text, images=[paint(scene).image], return_tensors="pt")
            length = len(tokenizer.encode(question.answer + chat.END))
            separate.append(reference(**inputs).logits[0, -length - 1 : -1])
    # The processor resizes with another library, whose rounding moves a few pixels by one level.
    torch.testing.assert_close(packed, torch.cat(separate), atol=1e-3, rtol=0)


def test_a_branch_sees_the_pictures_and_itself_only() -> None:
    builder = RowBuilder(chat.build_tokenizer())
    rng = random.Random(1)
    scene = sample_shape_scene(rng, 2, (224, 224))
    questions = [question for group in questions_about(scene, rng).values() for question in group][:2]
    grid = layout.grid_of(224, 224)
    both = pack([builder.branched([grid], [[question] for question in questions], system=False)])
    sees = attention_bias(torch.from_numpy(both.branches))[0, 0] == 0
    branches = both.branches[0]
    for place, branch in enumerate(branches):
        seen = {int(b) for b in branches[sees[place].numpy()]}
        assert seen <= {0, int(branch)}
        assert sees[place, place]
        assert not sees[place, place + 1 :].any()


def test_batches_depend_on_their_number_alone() -> None:
    tokenizer = chat.build_tokenizer()
    mixture = Mixture(num_singles=3, num_pairs=2, num_text=2, number_share=0.3)
    one, other = (BatchMaker(tokenizer, TRAIN_SEEDS) for _ in range(2))
    one.make(4, mixture)
    first, again = one.make(9, mixture), other.make(9, mixture)
    assert (first.singles.patches == again.singles.patches).all()
    assert (first.rows.ids == again.rows.ids).all()
    assert first.rows.kinds == again.rows.kinds


def test_batches_end_with_their_split() -> None:
    maker = BatchMaker(chat.build_tokenizer(), range(2000))
    mixture = Mixture(num_singles=1, num_pairs=0, num_text=0, number_share=0.3)
    maker.make(1, mixture)
    with pytest.raises(ValueError, match="past the seeds"):
        maker.make(2, mixture)


def test_grids_are_those_of_the_published_preprocessing() -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    for width in range(112, 449, 37):
        for height in range(112, 449, 41):
            resized = smart_resize(height, width, layout.CELL, layout.MIN_PIXELS, layout.MAX_PIXELS)
            grid = layout.grid_of(width, height)
            assert resized == (grid.rows * layout.CELL, grid.columns * layout.CELL)


def test_the_tokenizer_gives_back_any_text_and_splits_digits() -> None:
    tokenizer = chat.build_tokenizer()
    for text in ("What colour is the circle?", "Grüße, 世界 🙂", "tabs\tand\nlines"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("4821")) == 4
    assert len(tokenizer) <= chat.VOCAB_SIZE
