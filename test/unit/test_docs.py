"""README and docs/: every link leads somewhere, every page is in the site, examples run."""

import re
from pathlib import Path

import pytest
import torch  # noqa: F401 - before the examples, so that conftest.py pins its threads
import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md'), ROOT / 'test' / 'README.md'])
GENERATED = 'reference/'  # made when the site is built: test/ros/test_reference.py


def prose(path):
    """Return a page without its code."""
    return re.sub(r'```.*?```|`[^`\n]*`', '', path.read_text(encoding='utf-8'), flags=re.DOTALL)


def anchors(path):
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r'```.*?```', '', path.read_text(encoding='utf-8'), flags=re.DOTALL)
    titles = re.findall(r'^#+ (.*)$', text, re.MULTILINE)
    return {re.sub(r'\s', '-', re.sub(r'[^\w\s-]', '', title.lower()).strip())
            for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if re.match(r'[a-z]+:', target):
            continue
        name, _, anchor = target.partition('#')
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f'{page.name} links {target}'
        assert not anchor or anchor in anchors(path), f'{page.name} links {target}'


def test_every_picture_says_what_is_seen_and_has_a_command_that_makes_it():
    makers = (ROOT / 'scripts' / 'pictures.py').read_text()
    shown = [(alt, Path(name).name) for page in PAGES for alt, name in re.findall(
        r'!\[(.*?)\]\((\S+?\.png)\)', page.read_text(encoding='utf-8'))]
    assert {path.name for path in (ROOT / 'docs').rglob('*.png')} <= {name for _, name in shown}
    for alt, name in shown:
        assert len(alt) > 25, name
        assert f"'{name}'" in makers, name


def test_every_page_is_in_the_navigation_and_the_other_way_round():
    def pages(entry):
        if isinstance(entry, str):
            yield entry
        for child in entry.values() if isinstance(entry, dict) else ():
            yield from pages(child)
        for child in entry if isinstance(entry, list) else ():
            yield from pages(child)

    class Loader(yaml.SafeLoader):
        """Knows no tags of Python's."""

    Loader.add_multi_constructor('tag:yaml.org,2002:python/', lambda *_: None)
    site = yaml.load((ROOT / 'mkdocs.yml').read_text(), Loader)
    listed = {page for page in pages(site['nav']) if not page.startswith(GENERATED)}
    there = {path.relative_to(ROOT / 'docs').as_posix() for path in (ROOT / 'docs').rglob('*.md')}
    assert listed == there


def test_the_site_loads_nothing_from_the_network():
    site = (ROOT / 'mkdocs.yml').read_text()
    assert 'font: false' in site
    assert not re.search(r'https?://', site)


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) < 200


@pytest.mark.parametrize('page', ['README.md', 'docs/first_run.md'])
def test_the_python_example_runs(page, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    example, = re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)
    exec(compile(example, page, 'exec'), {})
    shape, tokens = capsys.readouterr().out.splitlines()
    assert f'print(chunk.actions.shape)  # {shape}:' in example
    assert 'of 512 visual tokens' in tokens
