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


# The same of its layout, said to the page around it: a window itself cannot be that narrow.
_LAYOUT = '''<script>addEventListener('load', () => parent.postMessage(JSON.stringify({
width: document.documentElement.scrollWidth,
smallest: Math.min(...[...document.querySelectorAll('body *')].filter(
e => [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim())).map(
e => parseFloat(getComputedStyle(e).fontSize))),
charts: [...document.querySelectorAll('.plot img')].map(i => [i.naturalWidth, i.width])}), '*'))
</script>'''
_AROUND = '''<body><script>addEventListener('message', m => {{
document.body.innerHTML = '<pre>' + m.data + '</pre>'}})</script>
<iframe src="probed.html" style="width:{width}px;height:2000px;border:0"></iframe></body>'''


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
    return _measured(_probed(page, folder, _PROBE))


def layout(page, folder, width):
    """What a page is like in a window of so many px.

    width: of what it would need. smallest: px of its smallest text. charts: [px of the picture,
    px on the page] of each.
    """
    _probed(page, folder, _LAYOUT)
    around = folder / 'around.html'
    around.write_text(_AROUND.format(width=width))
    return _measured(around)


def _probed(page, folder, probe):
    text = page.read_text()
    text = text.replace("default-src 'none';", "default-src 'none'; script-src 'unsafe-inline';")
    copy = folder / 'probed.html'
    copy.write_text(text.replace('</body>', f'{probe}</body>'))
    return copy


def _measured(page):
    dom = open_page(page, '--hide-scrollbars', '--dump-dom', '--virtual-time-budget=20000').stdout
    return json.loads(re.search(r'<pre>(.*?)</pre>', dom)[1])
