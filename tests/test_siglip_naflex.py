"""SigLIP 2 NaFlex: the logits of transformers' own processor and model, padding, and the gradient."""

from __future__ import annotations

import runpy
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.adapters.preprocess import Preprocess
from rwk.adapters.siglip import TINY
from rwk.adapters.siglip_naflex import Naflex, NaflexLarge, network

CASE = runpy.run_path(str(Path(__file__).with_name("clip_case.py")))
AGREE = runpy.run_path(str(Path(__file__).with_name("parity_case.py")))["agree"]
PROMPTS = ["A red cat", "", "the “blue” CAFÉ: on (a) table!", "a red cat " * 30]
SIZE, PATCH = 64, 8
"""The largest square: 8 by 8 patches, as many as have a place."""
TOLERANCE = 2e-5
"""Of scores that differ by 1 from picture to picture."""


def pictures() -> list[Image.Image]:
    """Wide, tall, square, larger and smaller than the grid, thin, grey and of a palette."""
    sizes = [(90, 41), (37, 150), (64, 64), (200, 201), (21, 13), (300, 9)]
    made = [CASE["picture"](f"{width}x{height}", width, height) for width, height in sizes]
    return [*made, made[0].convert("L"), made[3].quantize(64)]


def gemma() -> Any:
    """transformers' tokenizer as the published files set it: bytes and letters for Gemma's 256,000 pieces."""
    from tokenizers.processors import TemplateProcessing
    from transformers import Siglip2Tokenizer

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [("r", "e"), ("re", "d"), ("c", "a"), ("ca", "t")]
    pieces += ["".join(pair) for pair in merges]
    made = Siglip2Tokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=merges,
        padding_side="right",
        model_input_names=["input_ids"],
    )
    made.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint as `save_pretrained` writes it: weights, configuration, image processor and tokenizer."""
    from transformers import Siglip2ImageProcessorPil, Siglip2Processor

    place = tmp_path_factory.mktemp("naflex")
    words = gemma()
    made: Any = network(TINY, (SIZE // PATCH) ** 2, PATCH, len(words))
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        spread = 1 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.3
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * spread)
    made.logit_scale.data.fill_(3.0)
    made.logit_bias.data.fill_(-5.0)
    made.save_pretrained(place)
    images = Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=(SIZE // PATCH) ** 2)
    Siglip2Processor(images, words).save_pretrained(place)
    return place


@pytest.fixture
def loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Naflex:
    """The adapter on that checkpoint."""
    monkeypatch.setattr(Naflex, "preprocess", replace(Naflex.preprocess, size=SIZE, patch=PATCH))
    monkeypatch.setattr(Naflex, "words", len(gemma()))
    monkeypatch.setattr(Naflex, "shape", TINY)
    return Naflex(weights=folder)


@cache
def expected(folder: Path) -> Tensor:
    """[prompts, pictures] `logits_per_image` of what transformers loads from the folder, all in one batch."""
    from transformers import AutoModel, AutoTokenizer, Siglip2ImageProcessorPil, Siglip2Processor

    words, images = AutoTokenizer.from_pretrained(folder), Siglip2ImageProcessorPil.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    asked = Siglip2Processor(images, words)(
        images=[image.convert("RGB") for image in pictures()],
        text=PROMPTS,
        padding="max_length",
        truncation=True,
        max_length=64,
        max_num_patches=(SIZE // PATCH) ** 2,
        patch_size=PATCH,
        return_tensors="pt",
    )
    assert set(asked) == {"input_ids", "pixel_values", "pixel_attention_mask", "spatial_shapes"}
    assert asked["pixel_attention_mask"].float().mean() < 1  # something is filled up
    with torch.no_grad():
        logits: Tensor = model(**asked).logits_per_image
    return logits.T


def scores(reward: Naflex) -> Tensor:
    images = pictures()
    return torch.stack([reward.score(images, [prompt] * len(images)).values for prompt in PROMPTS])


@pytest.mark.filterwarnings("ignore:siglip2:UserWarning")  # one prompt is too long
def test_scores_are_transformers_logits(loaded: Naflex, folder: Path, record_property: Any) -> None:
    """From one folder the adapter gives `logits_per_image` of transformers' own model, image processor and tokenizer.

    transformers pads every picture to one number of patches and masks these; here nothing is padded.
    """
    logits = expected(folder)
    assert logits.std(1).min() > 0.1  # pictures tell
    assert logits.std(0).min() > 0.1  # so do prompts
    recorded = {"package": "transformers", "versions": {"transformers": version("transformers")}}
    AGREE(record_property, loaded.spec.name, recorded, scores(loaded), logits, atol=TOLERANCE)


@pytest.mark.filterwarnings("ignore:siglip2:UserWarning")
@pytest.mark.parametrize("change", ["square", "bicubic", "fewer patches", "capitals", "no end of text", "order"])
def test_other_variants_do_not_pass(loaded: Naflex, folder: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ports get wrong shifts some score by 100 times the tolerance of the comparison, or more."""
    read = loaded.ids
    if change == "square":
        loaded.preprocess = replace(loaded.preprocess, fit="squash")
    elif change == "bicubic":
        loaded.preprocess = replace(loaded.preprocess, interpolation="bicubic")
    elif change == "fewer patches":
        loaded.preprocess = replace(loaded.preprocess, size=SIZE - PATCH)
    elif change == "capitals":
        monkeypatch.setattr(loaded, "tokenizer", plain(loaded.tokenizer))
        monkeypatch.setattr(loaded, "canonical", str)
    elif change == "no end of text":
        monkeypatch.setattr(loaded, "ids", lambda prompts: read(prompts).masked_fill(read(prompts) == 1, 0))
    else:
        features = loaded.image_features
        monkeypatch.setattr(loaded, "image_features", lambda pixels: features(pixels.flip(1)))
    assert (scores(loaded) - expected(folder)).abs().max() > 100 * TOLERANCE


def plain(tokenizer: Any) -> Any:
    """The tokenizer without the step that makes small letters, as older transformers load it."""
    from tokenizers import normalizers

    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def test_a_score_does_not_depend_on_the_shapes_beside_it(loaded: Naflex) -> None:
    """A picture scores alone as among pictures of other grids, in any order."""
    images = pictures()
    prompts = [PROMPTS[i % 3] for i in range(len(images))]
    together = loaded.score(images, prompts).values
    alone = torch.cat([loaded.score([image], [prompt]).values for image, prompt in zip(images, prompts, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    turned = loaded.score(images[::-1], prompts[::-1], batch_size=3).values.flip(0)
    torch.testing.assert_close(together, turned, rtol=0, atol=1e-5)


@pytest.mark.parametrize("most", [16, 49, 256, 1024])
def test_sizes_are_those_of_transformers(most: int) -> None:
    """Width and height of pictures of any shape, from one pixel to far too long, are transformers' to the pixel."""
    from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

    preprocess = Preprocess(round(most**0.5) * 16, fit="patches")
    sizes = [(1, 1), (1, 9000), (16, 16), (255, 257), (640, 480), (1024, 1024), (1023, 1025), (4096, 333), (17, 4000)]
    generator = torch.Generator().manual_seed(most)
    sizes += torch.randint(1, 3000, (60, 2), generator=generator).tolist()
    for width, height in sizes:
        down, across = get_image_size_for_max_num_patches(height, width, 16, most)
        assert preprocess.resized(width, height) == (across, down), (width, height)


@pytest.mark.parametrize(("kind", "numbers"), [(Naflex, 375_234_050), (NaflexLarge, 1_135_670_962)])
def test_full_size_is_what_is_published(kind: type[Naflex], numbers: int) -> None:
    """Each network at its full size has the number of weights of its model card, which weigh what the file does."""
    with torch.device("meta"):
        made: Any = kind.build()
    assert sum(value.numel() for value in made.state_dict().values()) == numbers
    assert kind.origin.megabytes == pytest.approx(4 * numbers / 1e6, abs=1)
    assert made.vision_model.embeddings.position_embedding.weight.shape[0] == 256


def test_pixels_stand_within_the_tolerance(loaded: Naflex) -> None:
    """`score_pixels` is not further from `score` than is stated, for pictures to be enlarged, shrunk and stretched."""
    from torchvision.transforms.functional import pil_to_tensor

    images = [image.convert("RGB") for image in pictures()]
    pixels = [loaded.score_pixels(pil_to_tensor(image)[None] / 255, PROMPTS[:1]) for image in images]
    off = (torch.cat(pixels) - loaded.score(images, PROMPTS[:1] * len(images)).values).abs().max().item()
    assert loaded.tolerance / 100 < off < loaded.tolerance


@pytest.mark.parametrize("shape", [(45, 40), (20, 90)])
def test_gradient_is_that_of_finite_differences(shape: tuple[int, int]) -> None:
    """Along a random direction the gradient of `score_pixels` is the difference quotient, in float64."""
    reward = Naflex.tiny()
    reward.network.double()
    generator = torch.Generator().manual_seed(1)
    pixels, step = torch.rand(2, 2, 3, *shape, dtype=torch.float64, generator=generator)
    prompts = ["a dog", "a red cube on a green ball"]
    leaf = pixels.clone().requires_grad_()
    (slope,) = torch.autograd.grad(reward.score_pixels(leaf, prompts).sum(), leaf)
    ahead, behind = (reward.score_pixels(pixels + sign * 1e-5 * step, prompts).sum() for sign in (1, -1))
    expected = ((ahead - behind) / 2e-5).item()
    assert abs(expected) > 1e-6
    assert (slope * step).sum().item() == pytest.approx(expected, rel=1e-4)
