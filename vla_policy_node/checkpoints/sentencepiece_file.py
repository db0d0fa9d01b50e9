"""Reads a SentencePiece model (`*.model`) that may be anybody's, without its library.

That one is in C++, trusts what it parses and may end the process. The file is a table of pieces
with scores in the wire format of protocol buffers; what it says is built again from components of
`tokenizers`, which give the same ids: byte pairs are joined in the order of their scores. (Of two
splits that a unigram model finds equally likely, it may be the other.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, processors

from vla_policy_node.checkpoints.reading import MB, foreign, plain, regular_file

LARGEST_BYTES = 16 * MB  # PaliGemma's has 4
MOST_PIECES = 1 << 19
PIECE_CHARACTERS = 256
_WORK = 1 << 28  # characters of all ways to split all pieces
_SPACE = '▁'
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_UNIGRAM, _BPE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Piece(NamedTuple):
    text: str
    score: float
    kind: int


def read_sentencepiece(path: Path, first: int | None = None) -> Tokenizer:
    """Read the file; first: an id to put before every text.

    ValueError with one sentence for one that is damaged, or works in a way that is not built here.
    """
    regular_file(path, LARGEST_BYTES)
    with foreign(path, 'is no SentencePiece model; take the one that belongs to this checkpoint'):
        content = path.read_bytes()
        pieces, trainer, normalizer = _parse(content)
    problem = _problem(pieces, trainer, normalizer, first)
    if problem:
        raise ValueError(f'{path} {problem}; take the tokenizer.json of the checkpoint instead.')
    with foreign(path, 'is no tokenizer that can be built; take the tokenizer.json instead'):
        return _build(pieces, trainer, normalizer, first)


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a message; ValueError if it ends too early."""
    place, end = 0, len(content)
    while place < end:
        tag, place = _varint(content, place)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, place = _varint(content, place)
            yield number, value
            continue
        if kind == _BYTES:
            length, place = _varint(content, place)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError('a field of a kind that there is not')
        if length > end - place:
            raise ValueError('a field that is longer than the file')
        yield number, content[place:place + length]
        place += length


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = content[place]  # IndexError behind the end
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError('a number of more than ten bytes')


def _parse(content: bytes) -> tuple[list[_Piece], dict, dict]:
    pieces: list[_Piece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(content):
        if number == 1:
            if len(pieces) >= MOST_PIECES:
                raise ValueError('more pieces than any model has')
            pieces.append(_piece(dict(_fields(_bytes(value)))))
        elif number == 2:
            trainer |= dict(_fields(_bytes(value)))
        elif number == 3:
            normalizer |= dict(_fields(_bytes(value)))
    if not pieces:
        raise ValueError('no pieces')
    return pieces, trainer, normalizer


def _piece(fields: dict[int, int | bytes]) -> _Piece:
    kind = fields.get(3, _NORMAL)
    (score,) = struct.unpack('<f', _bytes(fields.get(2, bytes(4))))
    return _Piece(_bytes(fields[1]).decode(), score, kind if isinstance(kind, int) else 0)


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError('a number in the place of something else')
    return value


def _problem(pieces: list[_Piece], trainer: dict, normalizer: dict, first: int | None) -> str:
    """Say what of this model cannot be built, '' for nothing."""
    if trainer.get(3, _UNIGRAM) not in (_UNIGRAM, _BPE):
        return 'splits into words or characters, which is not read'
    if normalizer.get(2) or normalizer.get(6):
        return 'replaces characters by compiled rules, which are not read'
    if trainer.get(24) or not normalizer.get(5, 1):
        return 'marks spaces in a way that is not read'
    if len({piece.text for piece in pieces}) < len(pieces):
        return 'has a piece twice'
    lengths = [len(piece.text) for piece in pieces]
    if not min(lengths) or max(lengths) > PIECE_CHARACTERS:
        place = next(i for i, length in enumerate(lengths) if not 0 < length <= PIECE_CHARACTERS)
        return f'has a piece {plain(pieces[place].text)} of {lengths[place]} characters'
    if sum(length * length for length in lengths) > _WORK:
        return 'has more text in its pieces than any model has'
    kinds = [piece.kind for piece in pieces]
    if not {*kinds} <= {_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE}:
        return 'has pieces of a kind that is not read'
    if kinds.count(_UNKNOWN) != 1:
        return 'has not one piece for what is unknown'
    if not all(abs(piece.score) < 1e30 for piece in pieces):
        return 'has a score that is no number'
    if first is not None and not (first < len(pieces) and kinds[first] == _CONTROL):
        return f'has no BOS with the id {first}'
    return ''


def _build(
    pieces: list[_Piece], trainer: dict, normalizer: dict, first: int | None
) -> Tokenizer:
    unknown = next(place for place, piece in enumerate(pieces) if piece.kind == _UNKNOWN)
    fallback = bool(trainer.get(35, 0))
    # Control pieces stand for no text: under these names no text finds them.
    names = [f'\0{place}' if piece.kind in (_CONTROL, _UNKNOWN) else piece.text
             for place, piece in enumerate(pieces)]
    if trainer.get(3, _UNIGRAM) == _BPE:
        vocabulary = {name: place for place, name in enumerate(names)}
        model: models.Model = models.BPE(
            vocabulary, _merges(pieces, vocabulary), unk_token=names[unknown], fuse_unk=True,
            byte_fallback=fallback)
    else:
        scores = [(name, piece.score) for name, piece in zip(names, pieces, strict=True)]
        model = models.Unigram(scores, unknown, fallback)
    made = Tokenizer(model)
    steps: list[normalizers.Normalizer] = [normalizers.Replace(' ', _SPACE)]
    if normalizer.get(4, 1):  # extra spaces go
        steps = [normalizers.Replace(Regex(r'\A +| +\z'), ''),
                 normalizers.Replace(Regex(' +'), ' '), *steps,
                 normalizers.Replace(Regex(f'{_SPACE}+\\z'), '')]
    if normalizer.get(3, 1):
        steps.append(normalizers.Prepend(_SPACE))
    made.normalizer = normalizers.Sequence(steps)
    made.add_tokens([AddedToken(piece.text, normalized=True, special=False)
                     for piece in pieces if piece.kind == _USER_DEFINED])
    if first is not None:
        made.post_processor = processors.TemplateProcessing(
            single='<first> $A', special_tokens=[('<first>', first)])
    return made


def _merges(pieces: list[_Piece], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """All ways to join two pieces to one, the best scores first."""
    joins = []
    for piece in pieces:
        if piece.kind != _NORMAL:
            continue
        text = piece.text
        ways = [(text[:cut], text[cut:]) for cut in range(1, len(text))
                if text[:cut] in vocabulary and text[cut:] in vocabulary]
        ways.sort(key=lambda way: (vocabulary[way[0]], vocabulary[way[1]]))
        joins += [(-piece.score, way) for way in ways]
    joins.sort(key=lambda join: join[0])
    return [way for _, way in joins]
