"""Room: a run ↔ the library `lm_eval`, EleutherAI's evaluation harness (`pip install lm-eval`).

    python -m myllm.formats.lm_eval run --model myllm --model_args run=my-run \\
        --tasks lambada_openai

takes all that the harness's own command takes. In Python: `lm_eval.simple_evaluate(HarnessModel(
"my-run"), tasks=[…])`. Scores are those of the exported folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from myllm.config import SamplingConfig
from myllm.errors import MyLLMError
from myllm.generate.generator import TextGenerator

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    missing = f"the evaluation harness is not installed ({error}): pip install lm-eval"
    if __name__ == "__main__":
        sys.exit(f"myllm: {missing}")
    raise ImportError(missing) from None

Pair = tuple[Any, list[int], list[int]]  # the request, ids of its context, of its continuation


@register_model("myllm")
class HarnessModel(TemplateLM):  # type: ignore[misc, unused-ignore]
    """The best model of a run, as the harness asks models."""

    def __init__(
        self,
        run: str | None = None,
        runs_dir: str = "checkpoints",
        device: str | None = None,
        batch_size: int | str = 16,
        max_batch_size: int | None = None,
    ) -> None:
        """
        Args:
            run: name or folder; without one the newest run in `runs_dir`.
            runs_dir: the folder of runs.
            device: cpu, cuda, mps; by default the best one here.
            batch_size: texts in one forward pass; `auto` is 16.
            max_batch_size: the harness passes it; a limit of the above.

        Raises:
            InputError: no such run.
            CheckpointError: no good checkpoint.
        """
        super().__init__()
        if not torch.cuda.is_available() and str(device).startswith("cuda"):
            device = None  # the harness names a GPU where it was told nothing
        self._generator = TextGenerator.from_run(run, runs_dir, device)
        self._model = self._generator.model.float()
        size = int(batch_size) if str(batch_size).isdecimal() else 16
        self.batch_size = min(size, max_batch_size or size)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self._generator.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context."""
        return self._generator.tokenizer.bos_token_id

    @property
    def max_length(self) -> int:
        """The context length, in tokens."""
        return self._model.config.context_length

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Text → ids; what the model wants before a text is put there unless told otherwise."""
        tokenizer = self._generator.tokenizer
        before = tokenizer.prefix_ids if add_special_tokens in (None, True) else []
        return before + tokenizer.encode(string)

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """For each pair the log-likelihood of the continuation in nats, and whether it is what
        would be written greedily."""
        order = sorted(range(len(requests)), key=lambda i: -sum(map(len, requests[i][1:])))
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        with tqdm(total=len(order), desc="log-likelihoods", disable=disable_tqdm) as bar:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                for i, result in zip(batch, self._scores([requests[i] for i in batch])):
                    results[i] = result
                bar.update(len(batch))
        return results

    def _scores(self, batch: list[Pair]) -> Iterator[tuple[float, bool]]:
        kept = [(context + more)[-(self.max_length + 1) :] for _, context, more in batch]
        tokens = torch.zeros(len(kept), max(map(len, kept)) - 1, dtype=torch.long)
        for row, ids in zip(tokens, kept):
            row[: len(ids) - 1] = torch.tensor(ids[:-1])
        features: Tensor = self._model.features(tokens.to(self._generator.device))  # (B, T, C)
        for row, ids, (_, _, more) in zip(features, kept, batch):
            logits = self._model.lm_head(row[len(ids) - 1 - len(more) : len(ids) - 1])
            targets = torch.tensor(more, device=logits.device)
            loss = F.cross_entropy(logits, targets, reduction="sum").item()
            yield -loss, bool((logits.argmax(-1) == targets).all())

    def loglikelihood_rolling(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of whole texts in nats, each token predicted once."""
        windows: list[Pair] = []
        of_text: list[int] = []
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1):
                windows.append((None, *make_disjoint_window(pair)))
                of_text.append(i)
        sums = [0.0] * len(requests)
        for i, (score, _) in zip(of_text, self._loglikelihood_tokens(windows, disable_tqdm)):
            sums[i] += score
        return sums

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What is written after each context, up to one of its stop strings."""
        written = []
        for request in tqdm(requests, desc="texts", disable=disable_tqdm):
            context, given = request.args
            wanted = normalize_gen_kwargs(given)
            sampling = SamplingConfig(
                max_new_tokens=wanted["max_gen_toks"],
                temperature=wanted["temperature"] if wanted["do_sample"] else 0.0,
                top_p=wanted.get("top_p", 1.0),
                top_k=wanted.get("top_k"),
                stop=tuple(text for text in wanted["until"] if text),
            )
            room = max(1, self.max_length - sampling.max_new_tokens)
            ids = self._generator.encode_prompt(context)[-room:]
            written.append("".join(self._generator.stream_after(ids, sampling)))
        return written


def command() -> Callable[[], None]:
    """The harness's own command, as it is installed: its public entry point."""
    (entry,) = entry_points(group="console_scripts", name="lm-eval")
    loaded: Callable[[], None] = entry.load()
    return loaded


if __name__ == "__main__":
    try:
        command()()
    except MyLLMError as error:
        print(f"myllm: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
