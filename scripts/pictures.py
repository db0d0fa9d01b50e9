"""Makes the pictures of docs/ again: `python -m scripts.pictures NAME...`.

    overlay, filmstrip   from out/demo, which `vla demo --out out/demo` leaves
    replay               from out/replay: `vla replay out/demo/bag --trust-bag --config dense
                         --against lightvla --out out/replay`; takes a screenshot with Chromium
    methods, constants   from docs/methods.json and docs/constants/methods.json
    curves               from the folder of a run of `vla train`, with --run
    selection            from the selection.json of `vla bench selection`, with --selection
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
DOCS = ROOT / 'docs'
CHROMIUM = ('chromium', 'chromium-browser', 'google-chrome')
CAMERAS = ('third_person', 'wrist')
PAGE_PX, SCALE = 920, 1.5
GAP_PX = 8
# Where the screenshot ends: before this chart, so none is cut through.
FIRST_LEFT_OUT = 'chart3'


def overlay(options: argparse.Namespace) -> None:
    """Both cameras with what was kept of them."""
    stills = [np.asarray(Image.open(options.demo / f'tokens_{camera}.png').convert('RGB'))
              for camera in CAMERAS]
    gap = np.full((stills[0].shape[0], GAP_PX, 3), 255, np.uint8)
    save(Image.fromarray(np.hstack([stills[0], gap, stills[1]])), 'overlay.png')


def filmstrip(options: argparse.Namespace) -> None:
    """The first episode that succeeded."""
    tasks = json.loads((options.demo / 'demo.json').read_text())['tasks']
    number = next((n for n, task in enumerate(tasks) if task['success']), 0)
    save(Image.open(options.demo / f'filmstrip_{number}.png'), 'filmstrip.png')


def replay(options: argparse.Namespace) -> None:
    """The beginning of the page, down to the end of a chart."""
    text = (options.replay / 'report.html').read_text(encoding='utf-8')
    probe = ("<script>addEventListener('load', () => {document.body.innerHTML = '<pre>' + "
             f"document.getElementById('{FIRST_LEFT_OUT}').getBoundingClientRect().top + "
             "'</pre>'})</script></body>")
    probed = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    with tempfile.TemporaryDirectory() as folder:
        page, shot = Path(folder, 'page.html'), Path(folder, 'page.png')
        page.write_text(probed.replace('</body>', probe), encoding='utf-8')
        dom = browse(page, folder, f'--window-size={PAGE_PX},4000', '--dump-dom')
        height = int(float(re.search(r'<pre>([\d.]+)</pre>', dom)[1]))
        page.write_text(text, encoding='utf-8')
        browse(page, folder, f'--window-size={PAGE_PX},{height}', '--hide-scrollbars',
               f'--force-device-scale-factor={SCALE}', f'--screenshot={shot}')
        # As many colours as a palette holds: a third of the bytes. It would spoil photographs.
        save(Image.open(shot).convert('RGB').quantize(256, dither=Image.Dither.NONE), 'replay.png')


def methods(options: argparse.Namespace) -> None:
    """The table of methods."""
    draw_table(DOCS)


def constants(options: argparse.Namespace) -> None:
    """The sweep of constants."""
    draw_table(DOCS / 'constants')


def curves(options: argparse.Namespace) -> None:
    """The losses of a run."""
    from vla_policy_node.training.curves import METRICS, PICTURE, draw_curves

    if options.run is None:
        raise SystemExit('Name the folder of the run with --run.')
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(options.run / METRICS, folder)
        draw_curves(Path(folder))
        save(Image.open(Path(folder, PICTURE)), 'training-curves.png')


def selection(options: argparse.Namespace) -> None:
    """What each selection keeps, by task and phase."""
    from vla_policy_node.evaluation.plots import plot_names, write_plots

    if options.selection is None:
        raise SystemExit('Name the selection.json with --selection.')
    with tempfile.TemporaryDirectory() as folder:
        write_plots(json.loads(options.selection.read_text()), Path(folder))
        save(Image.open(Path(folder, plot_names()[1])), 'selection-tokens.png')


def draw_table(folder: Path) -> None:
    """Draw the rows of methods.json that were measured."""
    from vla_policy_node.bench.methods_plot import draw_methods

    rows = json.loads((folder / 'methods.json').read_text())
    draw_methods([row for row in rows if row['latency_ms'] is not None], folder / 'methods.png')


def browse(page: Path, folder: str, *options: str) -> str:
    """Open a page in Chromium; return what it printed."""
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        raise SystemExit('There is no Chromium; `apt-get install chromium`.')
    return subprocess.run(
        [program, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
         f'--user-data-dir={folder}/profile', '--no-first-run', '--virtual-time-budget=10000',
         *options, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True).stdout


def save(picture: Image.Image, name: str) -> None:
    """Write a picture into docs/."""
    picture.save(DOCS / name, optimize=True)
    print(f'docs/{name}: {(DOCS / name).stat().st_size >> 10} KB')


MAKERS = {maker.__name__: maker
          for maker in (overlay, filmstrip, replay, methods, constants, curves, selection)}


def main() -> int:
    """Make those that are named."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='+', choices=MAKERS, metavar='NAME')
    parser.add_argument('--demo', type=Path, default=ROOT / 'out' / 'demo')
    parser.add_argument('--replay', type=Path, default=ROOT / 'out' / 'replay')
    parser.add_argument('--run', type=Path)
    parser.add_argument('--selection', type=Path)
    options = parser.parse_args()
    for name in options.names:
        try:
            MAKERS[name](options)
        except FileNotFoundError as error:
            raise SystemExit(f'{error.filename} is missing; `python -m scripts.pictures --help` '
                             'says what leaves it.') from None
        except KeyError as error:
            raise SystemExit(f'What {name} is drawn from has no {error}: it was measured by an '
                             'earlier version; measure again.') from None
    return 0


if __name__ == '__main__':
    sys.exit(main())
