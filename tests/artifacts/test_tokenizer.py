"""Text to token ids and back, for the kinds of tokenizer that models come with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from artifacts import detokenizer
from artifacts.detokenizer import create_detokenizer, decode_all
from artifacts.errors import CorruptArtifactError
from artifacts.tokenizer import Tokenizer

DEMO = Path(__file__).parents[2] / "demo" / "model" / "tokenizer.json"
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "def main(): return [value for value in range(10)]",
    "naïve café, 東京 and Здравствуйте — it's fine!",
] * 4

UNKNOWN = "<unk>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def byte_fallback_library(decoder: Any) -> Library:
    """A small BPE as SentencePiece makes them: spaces spelt ▁, unknown characters as bytes."""
    library = Library(models.BPE(unk_token=UNKNOWN))
    library.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[UNKNOWN, "<s>", "</s>"], show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    content = json.loads(library.to_str())
    vocabulary = content["model"]["vocab"]
    for token in BYTES:
        vocabulary[token] = len(vocabulary)
    content["model"]["byte_fallback"] = True
    library = Library.from_str(json.dumps(content))
    library.decoder = decoder
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return library


def llama_decoder() -> Any:
    return decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def word_piece_library() -> Library:
    """Words and their ##continuations, joined by spaces."""
    library = Library(models.WordPiece(unk_token=UNKNOWN))
    library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    library.decoder = decoders.WordPiece(prefix="##")
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=[UNKNOWN, "[CLS]"], show_progress=False
    )
    library.train_from_iterator(CORPUS, trainer)
    return library


def with_added_tokens() -> Library:
    """Added tokens are not spelt in the byte alphabet; some of them are text."""
    library = Library.from_file(str(DEMO))
    library.add_tokens(["<| a tool |>", "東京"])
    library.add_special_tokens(["<| hidden |>"])
    return library


def without_decoder() -> Library:
    content = json.loads(word_piece_library().to_str())
    content["decoder"] = None
    return Library.from_str(json.dumps(content))


LIBRARIES: dict[str, Callable[[], Library]] = {
    "byte level": lambda: Library.from_file(str(DEMO)),
    "byte level, added": with_added_tokens,
    "byte fallback": lambda: byte_fallback_library(llama_decoder()),
    "metaspace": lambda: byte_fallback_library(
        decoders.Sequence(
            [
                decoders.ByteFallback(),
                decoders.Metaspace(replacement="▁", prepend_scheme="first"),
            ]
        )
    ),
    "word piece": word_piece_library,
    "no decoder": without_decoder,
}


@pytest.fixture(scope="module")
def libraries() -> dict[str, Library]:
    return {name: make() for name, make in LIBRARIES.items()}


def pieces(tokenizer: Tokenizer, ids: list[int], prompt: list[int] | None = None) -> list[str]:
    stream = create_detokenizer(tokenizer, prompt or [])
    return [*map(stream.push, ids), stream.flush()]


def byte_runs_are_whole(library: Library, ids: list[int]) -> bool:
    """Whether each run of byte tokens is valid UTF-8 (else the library gives the run up)."""
    run = b""
    special = set(library.get_added_tokens_decoder())
    for token_id in [*ids, None]:
        if token_id in special:
            continue
        token = "" if token_id is None else library.id_to_token(token_id)
        if token in BYTES:
            run += bytes([BYTES.index(token)])
            continue
        try:
            run.decode()
        except UnicodeDecodeError:
            return False
        run = b""
    return True


@pytest.mark.parametrize("kind", LIBRARIES)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_pieces_are_the_librarys_full_decode_of_any_ids(
    libraries: dict[str, Library], kind: str, data: st.DataObject
) -> None:
    """Whatever the ids, the pieces together are what the library makes of all at once."""
    library = libraries[kind]
    ids = data.draw(
        st.lists(st.integers(0, library.get_vocab_size() - 1), max_size=24).filter(
            lambda ids: byte_runs_are_whole(library, ids)
        )
    )
    assert library.decode(ids, skip_special_tokens=True) == "".join(pieces(Tokenizer(library), ids))


@pytest.mark.parametrize("kind", ["byte level", "byte fallback", "metaspace"])
@settings(max_examples=80, deadline=None)
@given(text=st.text(max_size=40))
def test_text_survives_the_round_trip_piece_by_piece(
    libraries: dict[str, Library], kind: str, text: str
) -> None:
    """Any text comes back whole, with no half character in any piece on the way."""
    tokenizer = Tokenizer(libraries[kind])
    ids = list(tokenizer.encode(text))
    streamed = pieces(tokenizer, ids)
    assert libraries[kind].decode(ids) == "".join(streamed)
    # The library spells a replacement character for what is not whole; the text has none.
    assert text.count(REPLACEMENT) == "".join(streamed).count(REPLACEMENT)


@pytest.mark.parametrize("kind", ["byte level", "byte fallback", "metaspace"])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_pieces_behind_a_prompt_continue_its_text(
    libraries: dict[str, Library], kind: str, data: st.DataObject
) -> None:
    """Prompt and pieces together are the text of both: spaces at the seam are kept."""
    library = libraries[kind]
    tokenizer = Tokenizer(library)
    text = data.draw(st.sampled_from([*CORPUS[:3], "東京 🎉 ok", " two  spaces"]))
    ids = list(tokenizer.encode(text))
    cut = data.draw(st.integers(1, len(ids)))
    prompt, rest = ids[:cut], ids[cut:]
    if REPLACEMENT in library.decode(prompt):  # the cut went through a character
        return
    assert library.decode(ids) == library.decode(prompt) + "".join(pieces(tokenizer, rest, prompt))


def test_an_emoji_comes_out_with_its_last_byte(libraries: dict[str, Library]) -> None:
    """Half a character is held back, and shown with the token that completes it."""
    for kind in ("byte level", "byte fallback", "metaspace"):
        tokenizer = Tokenizer(libraries[kind])
        ids = list(tokenizer.encode("a🎉b", add_special_tokens=False))
        streamed = pieces(tokenizer, ids)
        assert [piece for piece in streamed if piece] == ["a", "🎉", "b"], kind


def test_without_holding_back_half_characters_would_show(
    libraries: dict[str, Library], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: decoding each token for itself breaks the round trip."""
    tokenizer = Tokenizer(libraries["byte level"])
    ids = tokenizer.encode("🎉")

    def eager(_: Any, token_id: int) -> str:
        return tokenizer.token_bytes(token_id).decode(errors="replace")

    monkeypatch.setattr(detokenizer._ByteLevel, "push", eager)
    assert "".join(pieces(tokenizer, list(ids))) != "🎉"


@pytest.mark.parametrize("kind", ["byte level", "byte fallback", "metaspace"])
def test_a_character_that_never_gets_whole_is_replaced_at_the_end(
    libraries: dict[str, Library], kind: str
) -> None:
    """Flushing says that something was there, and nothing is said before."""
    tokenizer = Tokenizer(libraries[kind])
    ids = list(tokenizer.encode("x🎉", add_special_tokens=False))[:-1]
    *streamed, last = pieces(tokenizer, ids)
    assert "".join(streamed) == "x"
    assert {REPLACEMENT} == set(last)


def test_invalid_bytes_spoil_only_themselves(libraries: dict[str, Library]) -> None:
    """A stray byte is replaced at once, and whole characters beside it stay."""
    tokenizer = Tokenizer(libraries["byte fallback"])
    library = libraries["byte fallback"]
    byte = {value: library.token_to_id(BYTES[value]) for value in range(256)}
    ids = [byte[value] for value in "é".encode()] + [byte[0x80]] * 50
    streamed = pieces(tokenizer, ids)
    assert "".join(streamed) == "é" + REPLACEMENT * 50
    assert streamed[-1] == ""
    assert decode_all(tokenizer, ids) == "".join(streamed)


@pytest.mark.parametrize("kind", LIBRARIES)
def test_the_cost_of_a_token_does_not_grow(libraries: dict[str, Library], kind: str) -> None:
    """The library never sees more than a few ids at a time, however long the sequence is."""
    tokenizer = Tokenizer(libraries[kind])
    longest = 0
    decode = tokenizer.decode_exactly

    def counting(token_ids: tuple[int, ...]) -> str:
        nonlocal longest
        longest = max(longest, len(token_ids))
        return decode(token_ids)

    tokenizer.decode_exactly = counting  # type: ignore[method-assign, assignment]
    stream = create_detokenizer(tokenizer)
    for index in range(3000):
        stream.push(index * 7919 % tokenizer.size)
    assert longest <= 8


def test_special_tokens_are_no_text_unless_asked_for(libraries: dict[str, Library]) -> None:
    """The end of a sequence is skipped by default."""
    tokenizer = Tokenizer(libraries["byte level"])
    ids = [*tokenizer.encode("hi"), 0]
    assert decode_all(tokenizer, ids) == "hi"
    assert decode_all(tokenizer, ids, skip_special_tokens=False) == "hi<|endoftext|>"


def test_added_tokens_are_text_as_they_are_spelt(libraries: dict[str, Library]) -> None:
    """Tokens with characters outside the byte alphabet come out whole; special ones do not."""
    tokenizer = Tokenizer(libraries["byte level, added"])
    ids = list(tokenizer.encode("x<| a tool |>東京<| hidden |>y"))
    assert len(ids) == 5
    assert "".join(pieces(tokenizer, ids)) == "x<| a tool |>東京y"


def test_unknown_ids_are_no_text(libraries: dict[str, Library]) -> None:
    """A model's vocabulary may be padded beyond the tokenizer's."""
    for library in libraries.values():
        assert decode_all(Tokenizer(library), [10**6]) == ""


def test_lengths_in_the_file_do_not_cut_prompts() -> None:
    """Truncation and padding that training left in the file are switched off."""
    library = Library.from_file(str(DEMO))
    library.enable_truncation(3)
    library.enable_padding(length=64)
    assert 3 < len(Tokenizer(library).encode("a b c d e f g h")) < 64


def test_special_tokens_are_added_unless_not_wanted(libraries: dict[str, Library]) -> None:
    """The file's own beginning of a text is added, and can be left out."""
    tokenizer = Tokenizer(libraries["byte fallback"])
    assert tokenizer.encode("") == (1,)
    assert tokenizer.encode("", add_special_tokens=False) == ()


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": 3}'])
def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    """A broken file ends in our error, whatever the library raises."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"tokenizer\.json"):
        Tokenizer.load(path)
    path.unlink()
    with pytest.raises(CorruptArtifactError, match=r"tokenizer\.json"):
        Tokenizer.load(path)
