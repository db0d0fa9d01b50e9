"""What a policy takes for granted, and who says so: a file, a public name, a default, or nobody.

Weights fit many settings under which they act wrongly: any number of cameras, pictures turned in
any way, chunks of any length. Whoever loads a checkpoint is told what was taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vla_policy_node import families
from vla_policy_node.checkpoints import cogact_release, value_files
from vla_policy_node.checkpoints.adapter import adapter_in, base_of
from vla_policy_node.checkpoints.layout import PARTS, part_files, read_json
from vla_policy_node.checkpoints.processors import POSTPROCESSOR, PREPROCESSOR, read_processors
from vla_policy_node.checkpoints.published import published, published_transform
from vla_policy_node.checkpoints.reading import listed, plain
from vla_policy_node.checkpoints.statistics import STATISTICS
from vla_policy_node.nn.config import ModelConfig

CONFIG = 'config.json'
NAMES_SHOWN = 3
# Entries of config.json that say it; the first is the one to write.
_KEYS = {
    'decoding': ('head',), 'cameras': ('cameras',), 'proprio': ('state', 'proprio'),
    'actions': ('actions',), 'chunk': ('chunk_length',), 'action rows': ('action_rows',),
    'transforms': ('camera_transforms',), 'ranges': ('normalisation',), 'crop': ('center_crop',)}
# What public code does unless it is told otherwise. All else is guessed where nobody says it.
_BY_DEFAULT = frozenset({'actions', 'action rows', 'ranges', 'crop'})


@dataclass(frozen=True)
class Assumed:
    """One thing that is taken for granted.

    source: who says so, for people. guessed: nobody does, and weights fit other values as well.
    cure: what to do where it is wrong.
    """

    name: str
    value: str
    source: str
    guessed: bool = False
    cure: str = ''

    def __str__(self) -> str:
        if not self.guessed:
            return f'Taken {self.name}: {self.value} ({self.source}).'
        return f'Guessed {self.name}: {self.value} ({self.source}); {self.cure}.'


def assumptions(
    directory: Path, config: ModelConfig, statistics_key: str = '',
    transforms: Mapping[str, str] | None = None,
) -> list[Assumed]:
    """List what is taken for granted of a checkpoint that its weights do not tell.

    config: sizes as they are used. statistics_key: of the data set that is used, '' for none yet.
    transforms: camera -> what was chosen by whoever runs the policy; others are looked up.
    """
    sources = _Sources(directory, config)
    spec = config.spec
    return [
        sources.decoding(),
        sources.of('cameras', _counted(spec.cameras)),
        sources.of('proprio', _counted([value.name for value in spec.state]) or 'none',
                   'proprio_projector' if spec.state else ''),
        sources.of('actions', _counted([value.name for value in spec.actions]), 'action_head'),
        sources.of('chunk', str(config.chunk_length)),
        sources.of('action rows', sources.rows()),
        sources.of('ranges', sources.family.normalisation(directory, config)),
        *(sources.of(*item) for item in sources.family.conventions(config).items()),
        sources.transforms(statistics_key, transforms or {}),
    ]


def implied_transforms(
    directory: Path, config: ModelConfig, statistics_key: str
) -> tuple[dict[str, str], str]:
    """Return what turns the upright pictures of cameras into what training saw, and who says so.

    Empty if nobody does.
    """
    if config.camera_transforms:
        return dict(config.camera_transforms), f'{CONFIG}: camera_transforms'
    transform, name = published_transform(directory, statistics_key)
    if not transform:
        return {}, ''
    return dict.fromkeys(config.spec.cameras, transform), f'public name {name}'


def borrowed_data(directory: Path) -> list[Assumed]:
    """Say whose ranges are used if an adapter comes without those of its own data."""
    own = [directory / STATISTICS, *value_files.files(directory)]
    if adapter_in(directory) is None or any(path.exists() for path in own):
        return []
    return [Assumed(
        'data', f'that of the base model, {base_of(directory)}',
        f'the adapter has no {STATISTICS}', guessed=True,
        cure=f'if its data was other, put the {STATISTICS} of its training there')]


def unread_steps(directory: Path) -> list[Assumed]:
    """Say which steps around the network nothing here follows."""
    processors = read_processors(directory)
    if processors is None or not processors.unknown:
        return []
    return [Assumed(
        'processors', f'without {listed(processors.unknown)}',
        f'{PREPROCESSOR} or {POSTPROCESSOR}, whose other steps are followed', guessed=True,
        cure='if one of these changes pictures, numbers or words, the policy is not the one that '
        'was trained')]


def worth_saying(
    directory: Path, config: ModelConfig, statistics_key: str,
    transforms: Mapping[str, str], chunk_was_asked: bool,
) -> list[Assumed]:
    """List what whoever loads a policy should read: guesses, and pictures turned by a public name.

    transforms: camera -> as asked, 'auto' for what the checkpoint implies.
    """
    chosen = {camera: turn for camera, turn in transforms.items() if turn != 'auto'}
    found = [*assumptions(directory, config, statistics_key, chosen), *borrowed_data(directory),
             *unread_steps(directory)]
    return [one for one in found
            if (one.guessed and not (one.name == 'chunk' and chunk_was_asked))
            or (one.name == 'transforms' and 'public name' in one.source
                and (one.value != 'none' or 'against' in one.source))]


class _Sources:
    """Who says what of one checkpoint."""

    def __init__(self, directory: Path, config: ModelConfig):
        self.directory, self.config = directory, config
        self.family = families.of(config)
        self.document = read_json(directory, CONFIG)
        self.settled = self.family.said_by(self.document)
        self.release = cogact_release.find(directory)
        known = published(directory)
        self.public = known if known and known.head == config.family.name else None
        # Only training here writes this entry, and it takes what is not there for the defaults.
        self.ours = 'trained' in self.document

    def of(self, name: str, value: str, part: str = '') -> Assumed:
        """Ask one after the other; part: whose weights tell how many, if there is such a file."""
        for key in _KEYS.get(name, ()):
            if self.document.get(key) is not None:
                return Assumed(name, value, f'{CONFIG}: {key}{self._against(name)}')
        if name in self.settled:
            return Assumed(name, value, self.settled[name])
        if self.release:
            return Assumed(name, value, 'release of CogACT')
        if part in PARTS and (files := part_files(self.directory, part)):
            return Assumed(name, value, f'{plain(files[0].name)}; names: default')
        if self.public:
            return Assumed(name, value, f'public name {self.public.name}')
        if self.ours:
            return Assumed(name, value, 'default of training here')
        if name in _BY_DEFAULT:
            return Assumed(name, value, 'default')
        return Assumed(
            name, value, 'no file says it', guessed=True,
            cure=f'if that is wrong, write "{_KEYS[name][0]}" into its {CONFIG}')

    def _against(self, name: str) -> str:
        """Say so if a public name says something else than config.json."""
        public, config = self.public, self.config
        differs = public is not None and (
            (name == 'cameras' and public.cameras != config.cameras)
            or (name == 'chunk' and public.chunk_length != config.chunk_length)
            or (name == 'action rows' and public.action_rows != config.action_rows))
        return f', against public name {public.name}' if public and differs else ''

    def decoding(self) -> Assumed:
        """Tell how hidden states become actions."""
        value = f'{self.config.family.family}, {self.config.family.head}'
        parts = [path for part in ('noisy_action_projector', 'action_head', 'proprio_projector')
                 for path in part_files(self.directory, part)]
        if self.release:
            return self.of('decoding', value)
        if parts and self.document.get('head') is None:
            source = plain(parts[0].name)
        elif (self.public or self.document.get('head') is not None
              or 'decoding' in self.family.settled):
            return self.of('decoding', value)
        else:
            source = 'going by the files alone'
        taken_for = self.family.taken_for
        return Assumed('decoding', value, source, guessed=bool(taken_for), cure=taken_for)

    def rows(self) -> str:
        """Name the rows that the head reads."""
        if not self.config.rows_read:
            return 'none'
        if 'action rows' in self.settled:
            return 'the last one'
        public = self.public.action_rows if self.public else ''
        return self.config.action_rows or public or 'oft'

    def transforms(self, statistics_key: str, chosen: Mapping[str, str]) -> Assumed:
        """Tell how upright pictures are turned."""
        cameras = self.config.spec.cameras
        implied, source = implied_transforms(self.directory, self.config, statistics_key)
        used = {camera: chosen.get(camera, implied.get(camera, 'none')) for camera in cameras}
        value = used[cameras[0]] if len({*used.values()}) == 1 else ', '.join(
            f'{camera} {transform}' for camera, transform in used.items())
        if chosen.keys() >= {*cameras}:
            differs = any(used.get(camera, turn) != turn for camera, turn in implied.items())
            return Assumed('transforms', value, 'as asked' + f', against {source}' * differs)
        return Assumed('transforms', value, source) if source else self.of('transforms', value)


def _counted(names: Sequence[str]) -> str:
    more = ', ...' * (len(names) > NAMES_SHOWN)
    return f'{len(names)}: {listed(names[:NAMES_SHOWN])}{more}' if names else ''
