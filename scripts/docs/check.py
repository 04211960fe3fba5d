"""Check the built documentation site: every link, anchor and picture, and no strangers.

The builder checks links between pages. This reads what it wrote, so it also covers what
was made from docstrings: that each link inside the site leads to a file, and to a place
that this file has; that pictures, styles and scripts are there; that no page loads
anything from another server; and that every page can be reached from the first one.
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# The attributes by which a page loads something, and does not merely lead there.
LOADED = {"src", "srcset", "data", "poster"}


class Page(HTMLParser):
    """What a page has places for, links to, and loads."""

    def __init__(self, path: Path):
        super().__init__()
        self.places: set[str] = {"", "__top"}
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if not value:
                continue
            if key == "id" or (tag == "a" and key == "name"):
                self.places.add(value)
            elif key in LOADED or (tag == "link" and key == "href"):
                self.loads.append(value)
            elif key == "href":
                self.links.append(value)


def problems(site: Path) -> list[str]:
    """A sentence for each thing that is wrong with the site."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    found = []
    reached = {(site / name).resolve() for name in ("index.html", "404.html")}
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.loads and parts.scheme != "data":
                    found.append(f"{name} loads {link} from another server")
                continue
            base = site if parts.path.startswith("/") else path.parent
            target = path
            if parts.path:
                target = (base / unquote(parts.path).lstrip("/")).resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                found.append(f"{name} leads to {link}, which is missing")
            elif target in pages:
                if target != path:
                    reached.add(target)
                if unquote(parts.fragment) not in pages[target].places:
                    found.append(f"{name} leads to {link}; there is no such place")
    found += [
        f"{path.relative_to(site.resolve())} is reached from no other page"
        for path in sorted(pages.keys() - reached)
    ]
    return found


def main() -> int:
    """Print what is wrong with the site given, if anything."""
    site = Path(sys.argv[1])
    found = problems(site)
    for line in found:
        print(line, file=sys.stderr)
    pages = sum(1 for _ in site.rglob("*.html"))
    print(f"{site}: {pages} pages, {len(found)} problems")
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
