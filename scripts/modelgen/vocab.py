"""Synthetic vocabularies that work: every text encodes and decodes, and random output reads as
pronounceable words.

Both kinds are built from one list of merges (left piece, right piece): first chains that spell
common English words letter by letter, then syllables and pairs of syllables until the vocabulary is
full. A byte-level BPE vocabulary takes them as merges in rank order; a SentencePiece-style one
takes the merged pieces with falling scores.
"""

WORDS = """the of and to in is that it was for on are as with his they be at one have this from or
had by hot but some what there we can out other were all your when up use word how said an each she
which do their time if will way about many then them would write like so these her long make thing
see him two has look more day could go come did my sound no most number who over know water than
call first people may down side been now find stage actor expert layer model read memory drive
token wait play line scene return def class import self print int for while true false
none""".split()
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6


def byte_letters():
    """GPT-2's one printable letter per byte: itself where printable, else from U+0100 up, in byte
    order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, spare = {}, 256
    for b in range(256):
        letters[b] = chr(b) if b in printable else chr(spare)
        spare += b not in printable
    return letters


def _merges(space):
    """Yields (left, right) pairs, unique in their result, without end in practice (2.7 million)."""
    seen = set()

    def fresh(left, right):
        if left + right not in seen:
            seen.add(left + right)
            return [(left, right)]
        return []

    for word in WORDS:  # " the" = ␣ t, ␣t h, ␣th e
        piece = space
        for letter in word:
            yield from fresh(piece, letter)
            piece += letter
    syllables = [c + v for c in CONSONANTS for v in VOWELS]
    for syllable in syllables:
        yield from fresh(syllable[0], syllable[1])
    for syllable in syllables:
        yield from fresh(space, syllable)
    for tails in range(3):
        shorter = syllables if tails == 0 else [a + b for a in syllables for b in syllables]
        for head in shorter if tails < 2 else [a + b for a in shorter for b in syllables]:
            for syllable in syllables:
                yield from fresh(head, syllable)
                if tails < 2:
                    yield from fresh(space, head + syllable)


def _take(n, space):
    out, source = [], _merges(space)
    while len(out) < n:
        out.append(next(source))
    return out


def byte_level(n_vocab, pre):
    """Metadata of a `gpt2` vocabulary: bytes, merged pieces, three control tokens at the end."""
    letters = byte_letters()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = _take(n_vocab - 256 - len(special), letters[32])
    tokens = [letters[b] for b in range(256)] + [a + b for a, b in merges] + special
    types = [NORMAL] * (n_vocab - len(special)) + [CONTROL] * len(special)
    end = n_vocab - len(special)
    return {
        "tokenizer.ggml.model": ("str", "gpt2"),
        "tokenizer.ggml.pre": ("str", pre),
        "tokenizer.ggml.tokens": ("[str]", tokens),
        "tokenizer.ggml.token_type": ("[i32]", types),
        "tokenizer.ggml.merges": ("[str]", [f"{a} {b}" for a, b in merges]),
        "tokenizer.ggml.bos_token_id": ("u32", end),
        "tokenizer.ggml.eos_token_id": ("u32", end + 2),
        "tokenizer.ggml.padding_token_id": ("u32", end),
        "tokenizer.ggml.add_bos_token": ("bool", False),
    }


def sentencepiece(n_vocab):
    """Metadata of a `llama` vocabulary: <unk> <s> </s>, 256 bytes, merged pieces, single
    letters."""
    letters = ["\u2581", *(chr(c) for c in range(33, 127))]
    special = ["<unk>", "<s>", "</s>"]
    merged = [a + b for a, b in _take(n_vocab - len(special) - 256 - len(letters), "\u2581")]
    tokens = special + [f"<0x{b:02X}>" for b in range(256)] + merged + letters
    scores = [0.0] * (len(special) + 256) + [-float(i) for i in range(len(merged) + len(letters))]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(merged) + len(letters))
    return {
        "tokenizer.ggml.model": ("str", "llama"),
        "tokenizer.ggml.pre": ("str", "default"),
        "tokenizer.ggml.tokens": ("[str]", tokens),
        "tokenizer.ggml.scores": ("[f32]", scores),
        "tokenizer.ggml.token_type": ("[i32]", types),
        "tokenizer.ggml.unknown_token_id": ("u32", 0),
        "tokenizer.ggml.bos_token_id": ("u32", 1),
        "tokenizer.ggml.eos_token_id": ("u32", 2),
        "tokenizer.ggml.add_bos_token": ("bool", True),
        "tokenizer.ggml.add_eos_token": ("bool", False),
    }


def metadata_of(shape):
    return byte_level(shape.vocab, shape.pre) if shape.pre else sentencepiece(shape.vocab)
