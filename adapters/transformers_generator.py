"""Generators around one network of transformers: how it is loaded whole, built around, and kept."""

from __future__ import annotations

import functools
import json
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from rwk.adapters.hub_refusals import remedy
from rwk.adapters.pretrained import load_tokenizer, load_whole
from rwk.adapters.published import hub_is_near
from rwk.policy_opt.rollout import CausalGenerator
from rwk.policy_opt.sampling import Sampling
from rwk.rewards.errors import RunFailed


class TransformersGenerator(CausalGenerator):
    """A subclass writes `spec`, `hub`, `architecture`, `model_type`, `tiny`, `_take`, and what a CausalGenerator asks.

    `_take` sets `network`, `tokenizer` and `module`, what draws; all else of the network is frozen.
    """

    hub: ClassVar[str]
    architecture: ClassVar[str]
    """Name of the class of transformers."""
    model_type: ClassVar[str]
    """What config.json says of it."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Parts of keys that a checkpoint may lack, or have too many."""
    network: Any
    tokenizer: Any

    def __init__(
        self,
        *,
        weights: str | Path | None = None,
        revision: str | None = None,
        device: str = "cpu",
        dtype: str = "auto",
    ) -> None:
        """
        Args:
            weights: hub id or folder of a checkpoint in transformers' own layout; by default `hub`.
            revision: branch, tag or commit of the hub's repository.
            device: where the networks lie.
            dtype: of the networks, "float32" or "bfloat16", say; "auto" is that of the checkpoint.

        Raises:
            ValueError: where the checkpoint is in another layout or does not fill the network.
            RunFailed: where it cannot be had.
        """
        import transformers

        name, where = self.spec.name, str(Path(weights).expanduser() if weights else self.hub)
        try:
            source: dict[str, Any] = {"revision": revision, "local_files_only": not hub_is_near()}
            config: dict[str, Any] = transformers.PreTrainedConfig.get_config_dict(where, **source)[0]
            if config.get("model_type") != self.model_type:
                raise ValueError(
                    f"{name} needs a checkpoint in transformers' own layout, such as {self.hub}, got "
                    f"{_told(config, where)}; name that, or convert this one."
                )
            kind = getattr(transformers, self.architecture)
            network = load_whole(name, kind, where, unused=self.unused, dtype=dtype, **source)
        except OSError as error:
            if Path(where).is_dir():
                raise ValueError(
                    f"{name} needs a folder with config.json and weights in transformers' own layout, got one that "
                    f"cannot be read, {where} ({str(error).partition('. ')[0]}); copy the folder of {self.hub} anew."
                ) from error
            raise RunFailed(
                f"{name} needs the model {where}, which is no folder here, is not in the cache and cannot be "
                f"downloaded ({type(error).__name__}); {remedy(error, revision)}; without, "
                f"copy its folder here and name it as {name}@PATH."
            ) from error
        self.spec = replace(
            self.spec,
            image_size=config.get("rwk_image_size", self.spec.image_size),
            text=config.get("rwk_text", self.spec.text),
            sampling=Sampling(**config.get("rwk_sampling", asdict(self.spec.sampling))),
        )
        self._take(network, load_tokenizer(name, self.hub, where, revision if where == self.hub else None), device)

    @abstractmethod
    def _take(self, network: Any, tokenizer: Any, device: str) -> Self:
        """Itself, around this network and tokenizer."""

    @classmethod
    def of(cls, network: Any, tokenizer: Any, *, device: str = "cpu", **changes: Any) -> Self:
        """The generator around a network of any size that is loaded already, with these changes of its spec."""
        self = cls.__new__(cls)
        self.spec = replace(cls.spec, **changes)
        return self._take(network, tokenizer, device)

    @classmethod
    def _from_folder(cls, folder: Path, *, device: str = "cpu") -> Self:
        return cls(weights=folder, device=device)

    def _save(self, folder: Path) -> None:
        """See `Generator._save`; `from_pretrained` of transformers' class takes the folder too."""
        self.network.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder, save_jinja_format=False)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        spec = self.spec
        config |= {"rwk_generator": spec.name, "rwk_sampling": asdict(spec.sampling), "rwk_image_size": spec.image_size}
        config |= {"rwk_text": spec.text} if spec.text else {}
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def ids_of(self, names: Iterable[str]) -> list[int]:
        """Ids of control tokens; raises ValueError for one that the tokenizer does not know."""
        vocabulary, tokens = self.tokenizer.get_vocab(), list(names)
        missing = [token for token in tokens if token not in vocabulary]
        if missing:
            raise ValueError(
                f"{self.spec.name} needs a tokenizer that knows {missing[0]}, got one of {len(vocabulary)} tokens "
                f"without it; take the published one."
            )
        return [vocabulary[token] for token in tokens]

    @functools.cached_property
    def control(self) -> frozenset[int]:
        """Ids that no prompt may spell out."""
        return frozenset(self.tokenizer.get_added_vocab().values())

    def words(self, text: str) -> list[int]:
        """Ids of a text; raises ValueError for one that spells out a control token."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        control = next((number for number in ids if number in self.control), None)
        if control is not None:
            raise ValueError(
                f"{self.spec.name} reads prompts in words, got its control token "
                f"{self.tokenizer.convert_ids_to_tokens(control)!r} in {text[:60]!r}; take it out."
            )
        return ids


def _told(config: dict[str, Any], where: str) -> str:
    """What a checkpoint is that has this configuration."""
    if "model_type" in config:
        return f"one of type {config['model_type']!r} in {where}"
    return f"{'a config.json that names no model_type' if config else 'no config.json'} in {where}"


def byte_tokenizer(begin: str, padding: str, *control: str) -> Any:
    """A small tokenizer that reads bytes and these control tokens, each as one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: place for place, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([begin, padding, *control])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, pad_token=padding)
