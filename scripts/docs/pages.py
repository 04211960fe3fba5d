"""Put the pages of the documentation site together, for `scripts/docs.sh`.

The pages in docs/ are plain Markdown that a code host shows as it is, and so are the
README and the other pages at the top. Here they are copied into one folder. A link to a
file that is no page, such as a configuration or a script, leads to a page made of its
text; and each room of the package gets a page that says where its docstrings go.
"""

import argparse
import re
import shutil
from pathlib import Path

import api

ROOT = Path(__file__).parents[2]
# Pages that stand at the top of the project, and what they are called on the site.
TOP = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LANGUAGES = {".yaml": "yaml", ".py": "python", ".sh": "bash", ".json": "json"}
LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


class Site:
    """The pages that were written, and the files that they lead to."""

    def __init__(self, target: Path):
        self.target = target
        self.files: set[Path] = set()

    def add(self, source: Path, name: str) -> None:
        """Write a page of the project under its name on the site."""
        text = source.read_text(encoding="utf-8")
        depth = "../" * (len(Path(name).parts) - 1)

        def moved(match: re.Match[str]) -> str:
            before, target, anchor, after = match.groups()
            if "://" in target or target.startswith("mailto:"):
                return match[0]
            where = self.place((source.parent / target).resolve())
            return f"{before}{depth}{where}{anchor or ''}{after}"

        self.write(name, LINK.sub(moved, text))

    def place(self, file: Path) -> str:
        """Where the site has a file of the project, from the site's top."""
        name = file.relative_to(ROOT).as_posix()
        if name in TOP:
            return TOP[name]
        if name.startswith("docs/"):
            return name.removeprefix("docs/")
        self.files.add(file)
        return f"files/{name}.md"

    def add_files(self) -> None:
        """A page for each file that a page leads to and that is no page itself."""
        for file in sorted(self.files):
            name = file.relative_to(ROOT).as_posix()
            text = file.read_text(encoding="utf-8").rstrip()
            language = LANGUAGES.get(file.suffix, "text")
            page = f"# `{name}`\n\n````{language}\n{text}\n````\n"
            self.write(f"files/{name}.md", page)

    def write(self, name: str, text: str) -> None:
        path = self.target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main() -> None:
    """Write all pages into a folder that is emptied first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="the folder for the pages")
    site = Site(parser.parse_args().target)
    shutil.rmtree(site.target, ignore_errors=True)
    for source, name in TOP.items():
        if (ROOT / source).exists():
            site.add(ROOT / source, name)
    for source in sorted((ROOT / "docs").rglob("*")):
        name = source.relative_to(ROOT / "docs").as_posix()
        if source.suffix == ".md":
            site.add(source, name)
        elif source.is_file():
            (site.target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, site.target / name)
    for room in api.ROOMS:
        site.write(f"api/{room}.md", api.page(room))
    site.add_files()


if __name__ == "__main__":
    main()
