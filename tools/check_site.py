"""Reads and opens every page of the built site: `make docs-check`, after `make docs`.

Read: links and anchors lead somewhere, every picture has an alternative text. Opened in Chromium at three
widths, in light and dark: nothing is wider than the page, no script fails, no other server is asked but
MathJax's; and, with `--axe FILE`, what axe-core (https://github.com/dequelabs/axe-core) finds serious.
`--sheet FILE` puts the tops of all pages into one picture, to be looked at. Exit status 1 if anything was
found.

Needs Chromium, and playwright for Python (`pip install playwright`; no browser of its own is needed).
"""

import argparse
import io
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

WIDTHS, MODES, HEIGHT = (360, 768, 1280), ("light", "dark"), 900
MATHJAX = re.compile(r"https://cdn\.jsdelivr\.net/npm/mathjax@3/(.*)")
ALLOWED = re.compile(rf"{MATHJAX.pattern}|https://cdnjs\.cloudflare\.com/polyfill/.*")
# what sticks out of the page and does not scroll in something of its own
OUTSIDE = """() => {
  const wide = document.documentElement.clientWidth
  if (document.documentElement.scrollWidth <= wide) return []
  const scrolls = e => /auto|scroll|hidden|clip/.test(getComputedStyle(e).overflowX)
  const inside = e => { while ((e = e.parentElement) && e !== document.body) if (scrolls(e)) return true }
  return [...document.querySelectorAll('body *')]
    .filter(e => e.getBoundingClientRect().right > wide + 1 && !inside(e))
    .map(e => e.tagName.toLowerCase() + ' ' + (e.textContent || '').trim().slice(0, 40)).slice(0, 3)
}"""
SERIOUS = """async () => (await axe.run({resultTypes: ['violations']})).violations
  .filter(v => ['serious', 'critical'].includes(v.impact))
  .map(v => `${v.id}: ${v.nodes.length} times, such as ${v.nodes[0].html.slice(0, 90)}`)"""


# ---- reading

class Page(HTMLParser):
    "Names that a link can lead to, links, and pictures without an alternative text."
    def __init__(self, html):
        super().__init__()
        self.names, self.links, self.mute = set(), [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        has = dict(attrs)
        self.names.update(v for v in (has.get("id"), has.get("name")) if v)
        if tag == "a" and has.get("href"): self.links.append(has["href"])
        if tag == "img" and "alt" not in has: self.mute.append(has.get("src", "")[:60])


def read_site(site):
    "Every page below a folder, by its path."
    return {p.resolve(): Page(p.read_text(encoding="utf-8")) for p in sorted(Path(site).rglob("*.html"))}


def dead(link, page, pages, site):
    "Why a link leads nowhere; None for one that leads somewhere, or out of the site."
    path, anchor = urldefrag(link)
    if urlsplit(link).scheme or link.startswith("//"): return None
    to = (site / path.lstrip("/") if path.startswith("/") else page.parent / path).resolve() if path else page
    to = Path(unquote(str(to)))
    if to.is_dir(): to = to / "index.html"
    if not to.exists(): return f"{link} leads nowhere"
    known = to in pages and anchor and unquote(anchor) not in pages[to].names
    return f"{link}: no such name there" if known and not anchor.startswith(":~:") else None


def faults_read(site):
    "`(page, fault)` of all that can be seen without a browser."
    site, pages = Path(site).resolve(), read_site(site)
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        for link in dict.fromkeys(page.links):
            # the page of what is not there is shown at any address: its links begin at the site's own
            why = None if name == "404.html" else dead(link, path, pages, site)
            if why: yield name, why
        yield from ((name, f"a picture without an alternative text: {src}") for src in page.mute)


# ---- opening

class Browser:
    "Chromium, which gets the site's own files, and MathJax from a folder if there is one."
    def __init__(self, site, mathjax=None, axe=None):
        self.site, self.mathjax, self.axe, self.asked = Path(site), mathjax and Path(mathjax), axe, set()

    def place(self, path):
        "A file of the site; 404.html asks for all below the folder that the site has online"
        file = self.site / path
        return file if file.exists() else self.site / path.partition("/")[2]

    def answer(self, route):
        "A file of the site; of other servers what is allowed"
        url = urldefrag(route.request.url)[0].split("?")[0]
        own, math = url.removeprefix("http://site/"), MATHJAX.match(url)
        if own != url: file = self.place(unquote(own))
        elif math and self.mathjax: file = self.mathjax / math[1]
        else:
            if not ALLOWED.match(url): self.asked.add(url)
            return route.continue_() if ALLOWED.match(url) else route.abort()
        if file.is_file(): return route.fulfill(path=str(file))
        return route.fulfill(status=404, body="")

    def look(self, page, name):
        "`(faults, picture)` of a page that is to be opened"
        said = []
        def failed(error): said.append(f"a script fails: {error}")
        page.on("pageerror", failed)
        page.goto(f"http://site/{name}", wait_until="load")
        page.wait_for_timeout(300)
        wide = page.evaluate(OUTSIDE)
        if wide: said.append(f"wider than the page: {'; '.join(wide)}")
        if self.axe:
            page.add_script_tag(path=self.axe)
            said += page.evaluate(SERIOUS)
        said += [f"asks another server: {url}" for url in sorted(self.asked)]
        self.asked.clear()
        return said, page.screenshot()


def faults_opened(browser, names, pictures):
    "`(page, fault)` of all pages at all widths, in both modes; the tops of the pages go into `pictures`."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        chrome = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        for width in WIDTHS:
            for mode in MODES:
                view = chrome.new_context(viewport=dict(width=width, height=HEIGHT), color_scheme=mode)
                view.route("**/*", browser.answer)
                chosen = "alternate" if mode == "dark" else "default"
                view.add_init_script(f"localStorage.setItem('quarto-color-scheme', '{chosen}')")
                for name in names:
                    page = view.new_page()
                    said, picture = browser.look(page, name)
                    page.close()
                    pictures.setdefault(name, []).append(picture)
                    yield from ((f"{name} at {width} px, {mode}", s) for s in said)
                view.close()
        chrome.close()


def chromium():
    "Where Chromium is, if it is"
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def save_sheet(pictures, path, high=300):
    "A row of small pictures for each page."
    from PIL import Image
    rows = [[Image.open(io.BytesIO(b)) for b in row] for row in pictures.values()]
    small = [[i.resize((i.width * high // i.height, high)) for i in row] for row in rows]
    wide = max(sum(i.width + 8 for i in row) for row in small)
    sheet = Image.new("RGB", (wide, (high + 8) * len(small)), "red")
    for y, row in enumerate(small):
        x = 0
        for i in row:
            sheet.paste(i, (x, y * (high + 8)))
            x += i.width + 8
    sheet.save(path)


def main(argv=None):
    "The exit status"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", nargs="?", default="_docs", help="folder of the built site")
    parser.add_argument("--only", default="", help="pages with this in their path")
    parser.add_argument("--mathjax", help="folder of MathJax 3, as npm has it, where there is no network")
    parser.add_argument("--axe", help="axe.min.js")
    parser.add_argument("--sheet", help="picture of all pages")
    args = parser.parse_args(argv)
    names = [p.relative_to(args.site).as_posix() for p in sorted(Path(args.site).rglob("*.html"))]
    names = [n for n in names if args.only in n]
    if not names: sys.exit(f"{args.site} holds no such page: make docs")
    found, pictures = [f for f in faults_read(args.site) if args.only in f[0]], {}
    browser = Browser(args.site, args.mathjax, args.axe)
    try: found += faults_opened(browser, names, pictures)
    except ImportError: sys.exit("docs-check needs playwright: pip install playwright")
    for page, fault in found: print(f"{page}: {fault}")
    if args.sheet: save_sheet(pictures, args.sheet)
    print(f"{len(names)} pages, {len(found)} faults")
    return int(bool(found))


if __name__ == "__main__": sys.exit(main())
