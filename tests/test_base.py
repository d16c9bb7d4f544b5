"""The base class: shapes, notes, wrong calls, and how every kind of image becomes RGB."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from rwk.rewards.base import PixelReward, Reward, RewardSpec, Scores
from rwk.rewards.examples import truncated


class Brightness(Reward):
    """Mean of the pixels; black gets no score, with the note that `said` holds."""

    spec = RewardSpec("brightness", "8-bit steps", 0, 255, "n/a", "this test", needs_prompt=False)
    said = "it is black"

    @classmethod
    def tiny(cls) -> Brightness:
        return cls()

    def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor | Scores:
        means = [float(np.asarray(image).mean()) for image in images]
        values = torch.tensor([mean or math.nan for mean in means])
        return Scores(values, ["" if mean else self.said for mean in means])


class Asking(Brightness):
    spec = RewardSpec("asking", "8-bit steps", 0, 255, "n/a", "this test")


def grey(level: int, size: tuple[int, int] = (3, 2)) -> Image.Image:
    return Image.new("RGB", size, (level, level, level))


class TestScore:
    def test_values_follow_the_images_over_batches(self) -> None:
        """Values and notes stand where their images stood, whatever the batch size."""
        images = [grey(9), grey(0), grey(7), truncated("JPEG"), grey(5)]
        for size in (1, 2, 3, 5, 100):
            scores = Brightness().score(images, batch_size=size)
            assert torch.equal(scores.values.nan_to_num(-1), torch.tensor([9.0, -1, 7, -1, 5]))
            assert scores.notes[0] == scores.notes[2] == scores.notes[4] == ""
            assert scores.notes[1] == "it is black"
            assert scores.notes[3].startswith("cannot be decoded: ")

    def test_no_image_gives_no_score(self) -> None:
        """Zero images give values of shape [0]."""
        values, notes = Brightness().score([])
        assert values.shape == (0,)
        assert notes == []

    def test_only_broken_images(self) -> None:
        """A batch without a readable image does not reach the model."""
        values, notes = Brightness().score([truncated("PNG"), truncated("JPEG")])
        assert values.isnan().all()
        assert all(notes)

    def test_values_are_float32_whatever_the_default(self) -> None:
        """The global default dtype does not change that of the scores."""
        torch.set_default_dtype(torch.float64)
        try:
            assert Brightness().score([grey(1)]).values.dtype == torch.float32
        finally:
            torch.set_default_dtype(torch.float32)

    def test_scores_carry_no_gradient(self) -> None:
        """`score` runs without gradient, and leaves the mode as it was."""
        assert torch.is_grad_enabled()
        assert not Brightness().score([grey(1)]).values.requires_grad
        assert torch.is_grad_enabled()

    @pytest.mark.parametrize(("images", "prompts"), [(3, 2), (2, 3), (2, 0)])
    def test_wrong_number_of_prompts(self, images: int, prompts: int) -> None:
        """A reward that needs prompts names both numbers."""
        with pytest.raises(
            ValueError, match=f"one prompt per image, got {images} images and {prompts} prompts; repeat"
        ):
            Asking().score([grey(1)] * images, ["a"] * prompts)

    def test_prompts_may_be_left_out_where_none_is_needed(self) -> None:
        """None or one each, but not some."""
        assert Brightness().score([grey(1)] * 2).values.tolist() == [1, 1]
        assert Brightness().score([grey(1)] * 2, ["a", "b"]).values.tolist() == [1, 1]
        with pytest.raises(ValueError, match="got 2 images and 1 prompts; leave the prompts out"):
            Brightness().score([grey(1)] * 2, ["a"])

    @pytest.mark.parametrize(
        ("images", "prompts", "message"),
        [
            ([grey(1)], "a", "needs a list of prompts, got the text 'a'"),
            (grey(1), ["a"], "needs a list of images, got one Image"),
            (["cat.png"], ["a"], "needs PIL images, got str; open it with"),
            ([np.zeros((2, 2, 3))], ["a"], "needs PIL images, got ndarray"),
            ([grey(1)] * 2, ["a", None], "needs prompts that are text, got NoneType in prompt 1"),
            ([grey(1)] * 2, ["a", "\ud800 cat"], "needs prompts in Unicode, got half of a surrogate pair in prompt 1"),
        ],
    )
    def test_what_is_no_list_of_images(self, images: object, prompts: object, message: str) -> None:
        """A path, an array, a lone image, a text or what no tokenizer reads is refused by name."""
        with pytest.raises(ValueError, match=message):
            Asking().score(images, prompts)  # type: ignore[arg-type]

    def test_batch_size_of_zero(self) -> None:
        """A batch size below 1 is refused, and does not loop for ever."""
        with pytest.raises(ValueError, match="batch_size of at least 1, got 0"):
            Brightness().score([grey(1)], batch_size=0)

    @pytest.mark.parametrize("shape", [(), (2, 1), (1,), (3,)])
    def test_another_shape_than_one_number_per_image(self, shape: tuple[int, ...]) -> None:
        """A subclass that returns another shape is told which."""

        class Misshapen(Brightness):
            def _score(self, images: list[Image.Image], prompts: list[str]) -> Tensor:
                return torch.zeros(shape)

        with pytest.raises(ValueError, match=r"one number per image, got values of shape \(.*for 2 images"):
            Misshapen().score([grey(1)] * 2)

    def test_parts_of_a_reward_of_its_own(self) -> None:
        """A reward without parts gives its own scores by its name."""
        assert Brightness().parts() == {}
        assert Brightness().score_parts([grey(4)])["brightness"].values.tolist() == [4]


class TestPixelReward:
    class Corner(PixelReward):
        spec = RewardSpec("corner", "0..1", 0, 1, "n/a", "this test", needs_prompt=False, differentiable=True)
        smallest = 3

        @classmethod
        def tiny(cls) -> PixelReward:
            return cls()

        def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
            return pixels[:, 0, 2, 2]

    def test_sizes_may_differ_in_a_batch(self) -> None:
        """Images of unlike size are scored one by one; too small ones get NaN and the reason."""
        values, notes = self.Corner().score([grey(255, (3, 3)), grey(51, (9, 4)), grey(9, (2, 5))])
        assert values[:2].tolist() == pytest.approx([1, 0.2])
        assert values[2].isnan()
        assert notes == ["", "", "needs an image of at least 3x3 pixels, got 2x5"]

    def test_score_pixels_of_the_wrong_shape(self) -> None:
        """[1, 1] instead of [1] is refused."""

        class Square(self.Corner):  # type: ignore[misc, name-defined]
            def score_pixels(self, pixels: Tensor, prompts: Sequence[str] = ()) -> Tensor:
                return pixels[:, 0, 2:3, 2]

        with pytest.raises(ValueError, match=r"got values of shape \(1, 1\)"):
            Square().score([grey(1, (3, 3))])


class TestBrokenFiles:
    @pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "PPM"])
    def test_damaged_files_never_raise(self, format: str, recwarn: pytest.WarningsRecorder) -> None:
        """A file with random bytes changed or its end cut off scores, or gets NaN and a note."""
        rng = np.random.default_rng(7)
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(file, format)
        noted = 0
        for _ in range(60):
            data = bytearray(file.getvalue())
            for place in rng.integers(len(data) // 4, len(data), 8):
                data[place] = rng.integers(0, 256)
            try:
                image = Image.open(io.BytesIO(bytes(data[: rng.integers(len(data) // 2, len(data))])))
            except Exception:
                continue  # not an image to Pillow: whoever opens files sees to that
            values, notes = Brightness().score([image])
            noted += bool(values.isnan()[0])
            assert (notes[0] != "") == bool(values.isnan()[0])
        assert noted > 0

    def test_pixels_that_are_no_numbers(self) -> None:
        """A picture that cannot be shown gets NaN and the reason, as a file that cannot be read does."""
        values, notes = Brightness().score([Image.fromarray(np.array([[0.5, np.nan]], dtype=np.float32))])
        assert values.isnan().all()
        assert notes == ["cannot be decoded: it holds pixels that are not finite numbers"]

    def test_a_file_that_went_away(self, tmp_path: Path) -> None:
        """An image that was opened and whose file is empty by now gets NaN and a note."""
        noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            (tmp_path / "a.png").write_bytes(b"")
            values, notes = Brightness().score([image])
        assert values.isnan().all()
        assert notes[0].startswith("cannot be decoded: ")
