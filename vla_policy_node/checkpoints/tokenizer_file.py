"""Reads a `tokenizer.json` that may be anybody's.

The format can describe programs: expressions that search for ever, replacements that double a text
thirty times over, padding to a billion ids; and the library panics on parts that do not fit each
other. Of its components those are taken that work through a text in one go and make it longer by a
bounded factor. All that the tokenizers of Llama-2 and of our own small policies consist of is
among them; regular expressions and compiled character maps, which theirs do without, are not.

What the file says of truncation, padding and decoding is left out: it is none of the policy's, and
training sets its own.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from vla_policy_node.checkpoints.entries import Entries
from vla_policy_node.checkpoints.reading import MB, foreign, read_json, shown

# Llama-2's has 1.8 MB, or 3.6 where each merge is a list; PaliGemma's, of 257,000, has 18 or 34.
LARGEST_BYTES = 40 * MB
COMPONENTS = 64
ADDED_TOKENS = 4096
ADDED_CHARACTERS = 256  # of one token
TEMPLATE_PIECES = 16
GROWTH = 64  # of a text, by all replacements together

_NORMALIZERS = (
    'Sequence', 'Prepend', 'Replace', 'Strip', 'StripAccents', 'Lowercase', 'NFC', 'NFD', 'NFKC',
    'NFKD', 'Nmt', 'BertNormalizer', 'ByteLevel',
)
_PRE_TOKENIZERS = (
    'Sequence', 'Split', 'ByteLevel', 'Metaspace', 'Whitespace', 'WhitespaceSplit', 'Punctuation',
    'Digits', 'BertPreTokenizer', 'CharDelimiterSplit', 'UnicodeScripts',
)
_POST_PROCESSORS = (
    'Sequence', 'TemplateProcessing', 'ByteLevel', 'BertProcessing', 'RobertaProcessing',
)
_MODELS = ('BPE', 'WordPiece', 'WordLevel', 'Unigram')
# Where each kind of Sequence keeps its components.
_INNER = {
    'normalizer': 'normalizers', 'pre_tokenizer': 'pretokenizers', 'post_processor': 'processors'}


def read_tokenizer(path: Path) -> Tokenizer:
    """Read the file; ValueError with one sentence if it is damaged or does what is said above."""
    document = read_json(path, LARGEST_BYTES)
    entries = Entries(document, str(path))
    growth = 1.0
    for component in _components(entries, 'normalizer', _NORMALIZERS):
        growth *= _growth(component)
    if growth > GROWTH:
        raise ValueError(
            f'{path} makes texts {growth:.3g} times as long before it reads them; take the '
            'tokenizer.json that belongs to this checkpoint.'
        )
    for component in _components(entries, 'pre_tokenizer', _PRE_TOKENIZERS):
        if component.word('type') == 'Split':
            _literal(component)
    for component in _components(entries, 'post_processor', _POST_PROCESSORS):
        if component.word('type') == 'TemplateProcessing':
            _check_template(component)
    _check_model(entries.inside('model'))
    for token in entries.objects('added_tokens', ADDED_TOKENS, []):
        _short(token, 'content')
    kept = {**document, 'truncation': None, 'padding': None, 'decoder': None}
    with foreign(path, 'is no tokenizer that can be read; take the one of this checkpoint'):
        return Tokenizer.from_str(json.dumps(kept))


def _components(entries: Entries, key: str, known: tuple[str, ...]) -> list[Entries]:
    """The parts of a pipeline in order, those inside of others among them."""
    waiting, found = [entries.inside(key)] if key in entries else [], []
    while waiting:
        component = waiting.pop(0)
        found.append(component)
        if component.word('type', known) == 'Sequence':
            waiting = [*component.objects(_INNER[key]), *waiting]
        if len(found) + len(waiting) > COMPONENTS:
            raise entries.error(key, f'at most {COMPONENTS} components', entries.value(key))
    return found


def _growth(component: Entries) -> float:
    """How many times longer a normalizer makes a text at most, roughly."""
    kind = component.word('type')
    if kind == 'Prepend':
        _short(component, 'prepend')
    if kind != 'Replace':
        return 1.0
    pattern, content = _literal(component), _short(component, 'content')
    return max(1.0, len(content) / len(pattern))


def _literal(component: Entries) -> str:
    """The text that a component looks for."""
    pattern = component.inside('pattern')
    if 'Regex' in pattern:
        raise component.error(
            'pattern', 'a string, because a regular expression may search for ever',
            component.value('pattern'))
    text = pattern.word('String')
    if not text:
        raise pattern.error('String', 'a text with characters in it', text)
    return text


def _short(component: Entries, key: str) -> str:
    text = component.word(key)
    if len(text) > ADDED_CHARACTERS:
        raise component.error(key, f'a text of at most {ADDED_CHARACTERS} characters', text)
    return text


def _check_template(template: Entries) -> None:
    """Refuse a template that repeats the text, or names a token that it does not explain."""
    special = template.inside('special_tokens')
    for name in special.names():
        token = special.inside(name)
        ids = token.value('ids')
        if not isinstance(ids, list) or len(ids) > TEMPLATE_PIECES:
            raise token.error('ids', f'a list of at most {TEMPLATE_PIECES}', ids)
    texts = 0
    for piece in template.objects('single', TEMPLATE_PIECES):
        if 'SpecialToken' in piece:
            name = piece.inside('SpecialToken').word('id')
            if name not in special:
                raise template.error(
                    'special_tokens', f'a table with {shown(name)}', special.items())
        texts += 'Sequence' in piece
    if texts > 1:
        raise template.error('single', 'a template with the text once', template.value('single'))


def _check_model(model: Entries) -> None:
    kind = model.word('type', _MODELS, 'BPE')  # of older files, which do not tell
    if kind == 'BPE':
        model.number('dropout', 0, 0, 0)  # which would draw lots
        if model.word('continuing_subword_prefix', default=''):
            raise model.error(
                'continuing_subword_prefix', 'null', model.value('continuing_subword_prefix'))
    if kind == 'WordPiece':
        model.integer('max_input_chars_per_word', 1, 1000, 100)
