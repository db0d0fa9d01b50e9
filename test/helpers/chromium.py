"""Opens a page in headless Chromium; tests skip where there is none."""

import json
import re
import shutil
import subprocess
import tempfile

import pytest

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
# Runs in the page, after everything else: what every picture of it really is.
_PROBE = '''<script>addEventListener('load', () => {
document.body.innerHTML = '<pre>' + JSON.stringify([...document.images].map(
i => [i.complete, i.naturalWidth, i.naturalHeight])) + '</pre>'})</script>'''


def open_page(page, *options):
    """Return what Chromium printed; the messages of the page's console begin with CONSOLE."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip('there is no Chromium; `apt-get install chromium`')
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [program, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
             f'--user-data-dir={profile}', '--enable-logging=stderr', '--no-first-run', *options,
             page.as_uri()],
            capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done


def console(done):
    """Lines that the page wrote to its console, and what it failed to load."""
    return re.findall(r'.*(?:CONSOLE|net::ERR|Refused to).*', done.stderr)


def images(page, folder):
    """[complete, width, height] of every image, as the browser sees them.

    A copy of the page with a probe in it: the page itself allows no script.
    """
    text = page.read_text()
    text = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    copy = folder / 'probed.html'
    copy.write_text(text.replace('</body>', f'{_PROBE}</body>'))
    dom = open_page(copy, '--dump-dom', '--virtual-time-budget=20000').stdout
    return json.loads(re.search(r'<pre>(.*?)</pre>', dom)[1])
