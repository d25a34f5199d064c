"""The corpus as tokens: the tokenizer trained on it, and windows to train and to measure on."""

import json
import pathlib

import numpy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

DOMAINS = ("prose", "dictionary", "man", "python", "c")
END_OF_TEXT = "<|endoftext|>"
TOKENIZER_BYTES = 3_000_000  # of each domain, so that no domain owns the vocabulary


def documents(corpus: pathlib.Path, domain: str, split: str) -> list[str]:
    with open(corpus / f"{domain}.{split}.jsonl", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def train_tokenizer(corpus: pathlib.Path, vocabulary: int) -> Tokenizer:
    """Byte-level BPE with GPT-2's pre-tokenizer, on the training split only."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))

    def texts():
        for domain in DOMAINS:
            taken = 0
            for index in shuffled(len(all_of := documents(corpus, domain, "train")), seed=0):
                if taken > TOKENIZER_BYTES:
                    break
                taken += len(all_of[index])
                yield all_of[index]

    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def shuffled(count: int, seed: int) -> numpy.ndarray:
    return numpy.random.default_rng(seed).permutation(count)


def tokens_of(corpus: pathlib.Path, domain: str, split: str, tokenizer: Tokenizer,
              cache: pathlib.Path) -> numpy.ndarray:
    """All documents in one shuffled row, each ended by END_OF_TEXT; kept in `cache`."""
    path = cache / f"{domain}.{split}.npy"
    if not path.exists():
        texts = documents(corpus, domain, split)
        end = tokenizer.token_to_id(END_OF_TEXT)
        encoded = tokenizer.encode_batch([texts[i] for i in shuffled(len(texts), seed=1)])
        row = [numpy.array(entry.ids + [end], numpy.uint16) for entry in encoded]
        numpy.save(path, numpy.concatenate(row))
    return numpy.load(path)


class Windows:
    """Windows of one domain without replacement: each pass starts at a new offset, in new order."""

    def __init__(self, tokens: numpy.ndarray, seed: int):
        self.tokens, self.seed = tokens, seed
        self.drawn = 0  # tokens; all the state there is

    def next(self, length: int) -> numpy.ndarray:
        """`length` + 1 tokens: inputs and, one further, targets."""
        per_pass = len(self.tokens) // length - 2
        number, place = divmod(self.drawn // length, per_pass)
        self.drawn += length
        offset = int(numpy.random.default_rng([self.seed, number]).integers(length))
        start = offset + length * int(self._order(number, per_pass)[place])
        return self.tokens[start:start + length + 1].astype(numpy.int64)

    def _order(self, number: int, count: int) -> numpy.ndarray:
        if getattr(self, "_of", None) != (number, count):
            self._of = (number, count)
            self._kept = numpy.random.default_rng([self.seed, number, 1]).permutation(count)
        return self._kept


class Mixture:
    """Batches with as many windows of each domain as the next, in turn."""

    def __init__(self, streams: dict[str, numpy.ndarray], seed: int):
        self.windows = [Windows(streams[domain], seed + i) for i, domain in enumerate(DOMAINS)]
        self.turn = 0

    def batch(self, count: int, length: int) -> numpy.ndarray:
        rows = []
        for _ in range(count):
            rows.append(self.windows[self.turn % len(self.windows)].next(length))
            self.turn += 1
        return numpy.stack(rows)

    def state(self) -> dict:
        return {"turn": self.turn, "drawn": [w.drawn for w in self.windows]}

    def load(self, state: dict) -> None:
        self.turn = state["turn"]
        for window, drawn in zip(self.windows, state["drawn"], strict=True):
            window.drawn = drawn


def pair_counts(mixture: Mixture, vocabulary: int) -> numpy.ndarray:
    """[previous, next]: each pair's share of the training text, all domains weighing the same."""
    total = numpy.zeros(vocabulary * vocabulary, numpy.float32)
    for window in mixture.windows:
        pairs = window.tokens[:-1].astype(numpy.int64) * vocabulary + window.tokens[1:]
        total += numpy.bincount(pairs, minlength=len(total)) / (len(pairs) * len(mixture.windows))
    return total.reshape(vocabulary, vocabulary)
