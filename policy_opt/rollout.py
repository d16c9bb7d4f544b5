"""Images out of a causal language model: one prefill per prompt, a cache that never grows, matched log-probabilities.

A token is a code, 0..K-1, whatever id the model's vocabulary has for it. So it is its own label, can never be an end or
padding token, and the sampler's softmax, over codes alone, is the softmax that is trained.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor

from rwk.policy_opt.batched import BatchedGenerator
from rwk.policy_opt.compiled import CompiledSteps
from rwk.policy_opt.continuation import continued
from rwk.policy_opt.distribution import distribution, draw, placed_uniforms, row_uniforms
from rwk.policy_opt.generator import Rollout, TokenStatistics
from rwk.policy_opt.head_rows import head_rows
from rwk.policy_opt.lengths import in_step, parts_to_read
from rwk.policy_opt.module_state import without_dropout
from rwk.policy_opt.packed import packed
from rwk.policy_opt.prefix import Prefix, joined, right_behind, right_padded, slot
from rwk.policy_opt.sampling import Sampling


class CausalGenerator(BatchedGenerator):
    """A generator made of a transformers causal language model over text tokens and image codes.

    A subclass sets `spec` and `module` (the model, wrapped by LoRA or not) and writes `prompt_ids`, `null_ids` and
    `decode`. A family whose codes have an embedding or a head of their own overrides `embed_codes` and `image_logits`.
    Dropout is off while sampling and in `statistics`, whatever mode the module is in: a policy has one distribution.
    """

    max_rows = 4096
    torch_compile: bool = False
    """Whether it draws by compiled steps; see `compiled.compile_draws`."""
    counts_from_image: ClassVar[bool] = False
    """Whether the first code has position 0, and what stands before it negative ones; else the prompt begins at 0."""
    first_code: int = 0
    """Id of code 0 among those of the model; the other codes follow it."""
    line: int = 0
    """Codes between which `line_end` stands; 0 where nothing does. It is read, but no choice, and so no token."""
    line_end: int = 0

    @cached_property
    def _compiled(self) -> CompiledSteps:
        return CompiledSteps()

    def check_prompt(self, prompt: str) -> None:
        self.prompt_ids(prompt)

    @abstractmethod
    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids of the prompt up to and including the token after which the image begins."""

    @abstractmethod
    def null_ids(self, prompt: str) -> list[int]:
        """Ids that stand for no prompt in the place of this one, likewise: the prefix of the unconditional model.

        Most families have one for all prompts; Janus' is as long as the prompt. Equal ones are read once.
        """

    @property
    def causal_lm(self) -> Any:
        """The transformers model; LoRA acts on it too, since its layers are replaced in place."""
        return getattr(self.module, "get_base_model", lambda: self.module)()

    def embed_ids(self, ids: Tensor) -> Tensor:
        """[..., D] input embeddings of prompt ids."""
        return self.causal_lm.get_input_embeddings()(ids)  # type: ignore[no-any-return]

    def embed_codes(self, codes: Tensor) -> Tensor:
        """[..., D] input embeddings of image codes."""
        return self.embed_ids(codes + self.first_code)

    def image_logits(self, hidden: Tensor) -> Tensor:
        """[..., K] logits of the image codes alone, of hidden states [..., D]."""
        rows = slice(self.first_code, self.first_code + self.spec.codes)
        return head_rows(self.causal_lm.get_output_embeddings(), hidden, rows)

    def backbone(
        self, embeds: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """[B, S, D] last hidden states of input embeddings [B, S, D], causal.

        Args:
            positions: [B, S] long, or None for 0..S-1; never None where they count from the image.
            mask: [B, 1, S, filled] to add to the attention scores, or None where every row sees all before it.
            cache: transformers' `Cache`, or None.
        """
        output = self.causal_lm.get_decoder()(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def sample(
        self, prompts: Sequence[str], *, per_prompt: int = 1, seed: int, sampling: Sampling | None = None
    ) -> Rollout:
        """See `Generator.sample`; a prompt that is named again continues its group, with further places in it."""
        recipe = sampling or self.spec.sampling
        rows, group = self._rows(prompts, per_prompt)
        noise = row_uniforms(rows, self.spec.tokens, seed).to(self.device)
        with torch.no_grad(), without_dropout(self.module), packed(self.module, rows=len(rows), calls=self.spec.tokens):
            branches = self._branches(list(dict.fromkeys(rows)), recipe.guidance)
            read = {ids: number for number, ids in enumerate(dict.fromkeys(chain(*branches)))}
            prefix = self._prefill(list(read), torch.empty([len(read), 0], dtype=torch.long, device=self.device))

            def drawn_part(part: slice) -> tuple[Tensor, Tensor]:
                source = [read[branch[number]] for branch in branches for number in group[part]]
                return self._draw(prefix, source, noise[part], recipe)

            drawn = self._by_parts(len(rows), recipe.guidance, drawn_part)
        tokens, logprobs = (torch.cat(list(column)) for column in zip(*drawn, strict=True))
        return Rollout(rows, torch.tensor(group, device=self.device), tokens, logprobs, recipe)

    def continue_from(
        self,
        prompts: Sequence[str],
        tokens: Tensor,
        *,
        places: Sequence[int],
        seed: int,
        until: int | None = None,
        sampling: Sampling | None = None,
    ) -> Tensor:
        """See `Generator.continue_from`; rows that begin alike are read once."""
        begun, end = tokens.shape[1], self._end(prompts, tokens, places, until)
        recipe, tokens = sampling or self.spec.sampling, tokens.to(self.device)
        noise = placed_uniforms(prompts, places, self.spec.tokens, seed)[:, begun:end].to(self.device)

        def drawn_part(part: slice) -> Tensor:
            codes = [tuple(row) for row in tokens[part].tolist()]
            branches = self._branches(prompts[part], recipe.guidance)
            rows = [pair for branch in branches for pair in zip(branch, codes, strict=True)]
            index = {row: place for place, row in enumerate(dict.fromkeys(rows))}
            read = torch.tensor([row for _, row in index], dtype=torch.long, device=self.device)
            prefix = self._prefill([ids for ids, _ in index], read.view(len(index), begun))
            return self._draw(prefix, [index[row] for row in rows], noise[part], recipe)[0]

        with torch.no_grad(), without_dropout(self.module), packed(self.module, rows=len(prompts), calls=end - begun):
            drawn = self._by_parts(len(prompts), recipe.guidance, drawn_part)
        return torch.cat([tokens, torch.cat(drawn)], 1)

    def statistics(self, rollout: Rollout) -> TokenStatistics:
        """See `Generator.statistics`. A token that the truncation would drop by now is kept, as `distribution` says."""
        recipe = rollout.sampling
        if recipe.mode == "cond_only":
            recipe = replace(recipe, guidance=1.0)
        learns = torch.is_grad_enabled()
        learns_without = learns and recipe.mode != "matched_detach_uncond"

        def part_of(part: slice) -> tuple[Tensor, Tensor]:
            codes = rollout.tokens[part].to(self.device)
            cond, *uncond = self._branches(rollout.prompts[part], recipe.guidance)
            states = [self._states(cond, codes)]
            with torch.set_grad_enabled(learns_without), without_dropout(self.module, recompute=learns_without):
                states += [self._states(branch, codes) for branch in uncond]
            return self._token_statistics(states, codes, recipe)

        with without_dropout(self.module, recompute=learns):
            results = self._by_parts(len(rollout), recipe.guidance, part_of)
        logprobs, entropy = (torch.cat(list(column)) for column in zip(*results, strict=True))
        return TokenStatistics(logprobs, entropy)

    def _branches(self, prompts: Sequence[str], guidance: float) -> list[list[tuple[int, ...]]]:
        """Prefixes of the prompts and, where guidance asks for them, of no prompt in their place."""
        branches = [self.prompt_ids] if guidance == 1 else [self.prompt_ids, self.null_ids]
        return [[tuple(ids(prompt)) for prompt in prompts] for ids in branches]

    def _prefill(self, prefixes: Sequence[Sequence[int]], codes: Tensor) -> Prefix:
        """Keys, values and last states of every prefix and the codes [U, k] behind it, each computed once."""
        parts = parts_to_read(self.causal_lm, [len(ids) for ids in prefixes], self.device.type)
        if len(parts) == 1:
            return self._read(prefixes, codes)
        return joined([(part, self._read([prefixes[row] for row in part], codes[part])) for part in parts])

    def _read(self, prefixes: Sequence[Sequence[int]], codes: Tensor) -> Prefix:
        """What `_prefill` says of some prefixes, which are padded."""
        from transformers import DynamicCache

        embeds, starts = self._embedded(prefixes, codes)
        begun = slot(codes.shape[1], self.line)
        lengths = [start + begun for start in starts]
        positions = self._positions(starts, embeds.shape[1])

        def read(part: slice) -> list[Tensor]:
            cache: Any = DynamicCache()
            # No mask: padding lies to the right, where a causal model does not look.
            hidden = self.backbone(embeds[part], positions=None if positions is None else positions[part], cache=cache)
            last = torch.tensor(lengths[part], device=self.device) - 1
            layers = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
            return [hidden[torch.arange(len(last), device=self.device), last], *layers]

        parts = self._by_parts(len(prefixes), 1, read)
        hidden, *layers = (torch.cat(list(column)) for column in zip(*parts, strict=True))
        places = [begun] * len(lengths) if self.counts_from_image else lengths
        return Prefix(lengths, places, codes.shape[1], hidden, layers)

    def _draw(self, prefix: Prefix, source: list[int], noise: Tensor, recipe: Sampling) -> tuple[Tensor, Tensor]:
        """Tokens and log-probabilities, both [B, steps], of rows that continue the prefixes `source` [copies * B].

        Where the recipe guides, the second half of `source` are the same rows without their prompt.
        """
        count, steps = noise.shape
        copies, room = len(source) // count, slot(prefix.codes + steps, self.line) - slot(prefix.codes, self.line)
        if self.torch_compile:
            read = self._compiled.continued(self.backbone, prefix, source, room)
        else:
            read = continued(self.backbone, self.causal_lm, prefix, source, room)
        hidden = prefix.hidden[torch.tensor(source, device=self.device)]  # [copies * B, D]
        tokens = torch.empty([count, steps], dtype=torch.long, device=self.device)
        logprobs = torch.empty([count, steps], device=self.device)
        for step in range(steps):
            logits = self.logits_at(hidden, torch.full([len(hidden)], prefix.codes + step, device=self.device))
            logp = distribution(logits[:count], logits[count:] if copies == 2 else None, recipe)
            code = draw(logp, noise[:, step])
            tokens[:, step] = code
            logprobs[:, step] = logp.gather(1, code[:, None])[:, 0]
            if step + 1 == steps:
                break
            for embeds in self._woven(code.repeat(copies)[:, None], prefix.codes + step).split(1, 1):
                hidden = read(embeds)
        return tokens, logprobs

    def _states(self, prefixes: Sequence[Sequence[int]], codes: Tensor) -> Tensor:
        """[B, L, D] states that predict each of the codes [B, L], teacher-forced."""
        passes = 1.0
        if self._reads_shared(prefixes, codes):
            passes = 2 * len(prefixes) / len(set(map(tuple, prefixes)))
        parts = parts_to_read(self.causal_lm, [len(ids) for ids in prefixes], self.device.type, passes)
        if len(parts) == 1:
            return self._states_at_once(prefixes, codes)
        states = torch.cat([self._states_at_once([prefixes[row] for row in part], codes[part]) for part in parts])
        return states[torch.tensor(list(chain(*parts)), device=self.device).argsort()]

    def _reads_shared(self, prefixes: Sequence[Sequence[int]], codes: Tensor) -> bool:
        """Whether a prefix that several rows have is read once.

        That is so where it saves an eighth of the work, no layer is to be computed again, for which transformers allows
        no cache, and no other process has to call the layers as often.
        """
        tokens = sum(map(len, prefixes))
        saved = tokens - sum(map(len, set(map(tuple, prefixes))))
        again = any(part.training for part in self.module.modules())
        pays = codes.shape[1] > 1 and 8 * saved >= tokens + codes.numel()
        return pays and not again and not in_step(self.causal_lm)

    def _states_at_once(self, prefixes: Sequence[Sequence[int]], codes: Tensor) -> Tensor:
        """[B, L, D] states as `_states` has them, of rows that are padded."""
        if self._reads_shared(prefixes, codes):
            read = {ids: number for number, ids in enumerate(dict.fromkeys(map(tuple, prefixes)))}
            return self._states_behind(list(read), [read[tuple(ids)] for ids in prefixes], codes)
        embeds, lengths = self._embedded(prefixes, codes[:, :-1])
        hidden = self.backbone(embeds, positions=self._positions(lengths, embeds.shape[1]))
        if min(lengths) == max(lengths) and not self.line:
            return hidden[:, lengths[0] - 1 :]
        predicts = torch.tensor(lengths)[:, None] - 1 + slot(torch.arange(codes.shape[1]), self.line)  # [B, L]
        return hidden.take_along_dim(predicts[..., None].to(self.device), 1)

    def _states_behind(self, prefixes: Sequence[Sequence[int]], source: list[int], codes: Tensor) -> Tensor:
        """[B, L, D] states as `_states` has them, of rows that continue the prefixes `source` [B], with gradient."""
        prefix, embeds = self._prefill(prefixes, codes[:, :0].new_empty([len(prefixes), 0])), self._woven(codes[:, :-1])
        steps = embeds.shape[1]
        start = torch.tensor([[prefix.positions[row]] for row in source], device=self.device)
        positions = start + torch.arange(steps, device=self.device)
        mask, cache = prefix.causal_mask(source, steps), prefix.expand(source, steps)
        hidden = self.backbone(embeds, positions=positions, mask=mask, cache=cache)
        whole = torch.cat([prefix.hidden[torch.tensor(source, device=self.device)][:, None], hidden], 1)
        return whole[:, slot(torch.arange(codes.shape[1], device=self.device), self.line)] if self.line else whole

    def _positions(self, starts: list[int], width: int) -> Tensor | None:
        """[B, width] positions of prefixes with codes from `starts` on, where they count from the image, else None."""
        if not self.counts_from_image:
            return None
        return torch.arange(width, device=self.device) - torch.tensor(starts, device=self.device)[:, None]

    def _embedded(self, prefixes: Sequence[Sequence[int]], codes: Tensor) -> tuple[Tensor, list[int]]:
        """Embeddings [B, P + k, D] of prefixes with codes [B, k] right behind each, and the length of each prefix."""
        ids, lengths = right_padded(prefixes, self.device)
        return right_behind(self.embed_ids(ids), self._woven(codes), lengths), lengths

    def _woven(self, codes: Tensor, start: int = 0) -> Tensor:
        """[B, k + n, D] embeddings of codes [B, k], the `start`-th of the image the first, and of n ends of lines."""
        embeds = self.embed_codes(codes)
        if not self.line:
            return embeds
        begin, end = slot(start, self.line), slot(start + codes.shape[1], self.line)
        slots = slot(torch.arange(start, start + codes.shape[1], device=self.device), self.line) - begin
        ends = self.embed_ids(torch.full([1, 1], self.line_end, device=self.device))
        return ends.expand(len(codes), end - begin, -1).index_copy(1, slots, embeds)
