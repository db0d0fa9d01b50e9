"""Hooks of mkdocs: add the pages that `python -m scripts.reference` made to those of docs/."""

from pathlib import Path

from mkdocs.structure.files import File

PAGES = Path('build/docs-pages')
API = 'Python API'


def on_files(files, config):
    """Add every generated page, and list the Python API in the navigation."""
    if not PAGES.is_dir():
        raise SystemExit(f'{PAGES} is missing: build the site with `make docs`.')
    api = []
    for path in sorted(PAGES.rglob('*.md')):
        name = path.relative_to(PAGES).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path.resolve())))
        if name.startswith('reference/api/'):
            api.append({path.stem: name})
    for section in config.nav:
        for entry in next(iter(section.values())) if isinstance(section, dict) else ():
            if isinstance(entry, dict) and API in entry:
                entry[API] = api
    return files
