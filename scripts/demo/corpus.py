#!/usr/bin/env python3
"""Text for the demo model: five domains, from freely licensed Debian packages.

    scripts/demo/corpus.py --out build/demo/corpus

Packages are downloaded by `apt-get download` and unpacked, never installed; the machine needs apt,
dpkg-deb, groff and tar. Writes <domain>.train.jsonl and <domain>.valid.jsonl, one document per
line ({"name", "text"}), and sources.json (package, version, licence, sizes). A document goes to
validation by the hash of its name, so the split is the same on every machine.
"""

import argparse
import gzip
import hashlib
import itertools
import json
import pathlib
import re
import subprocess
import sys
import tarfile
import urllib.parse

# Every package a domain is made of, and the licence of what is taken from it.
PACKAGES = {
    "bible-kjv-text": "public domain (King James Version, 1611)",
    "bible-kjv": "GPL-2+ (the program that prints the text; nothing of it is in the text)",
    "dict-wn": "WordNet 3.0 licence (permissive, Princeton University)",
    "manpages": "Linux man-pages project: GPL-2+, BSD and verbatim-copying, page by page",
    "manpages-dev": "Linux man-pages project: GPL-2+, BSD and verbatim-copying, page by page",
    "libpython3.11-minimal": "PSF licence 2",
    "libpython3.11-stdlib": "PSF licence 2",
    "newlib-source": "BSD and similar permissive licences, file by file (newlib/libc, newlib/libm)",
}
VALID_SHARE = 16  # one document in so many
MIN_DOCUMENT = 200  # bytes; shorter ones teach little but their own end
MAX_DOCUMENT = 120_000  # longer ones are tables and generated code


def download(folder: pathlib.Path) -> pathlib.Path:
    """Unpacks all packages below one root; returns it."""
    debs, root = folder / "deb", folder / "root"
    debs.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        if not list(debs.glob(f"{package}_*.deb")):
            subprocess.run(["apt-get", "download", "-q", package], cwd=debs, check=True)
        deb = sorted(debs.glob(f"{package}_*.deb"))[-1]
        subprocess.run(["dpkg-deb", "-x", deb, root], check=True)
    return root


def prose(root):
    """The Bible, a document per book: a verse per line, a blank line between chapters."""
    program = (root / "usr/bin/bible").resolve()
    verses = subprocess.run([program, "-f", "gen1:1-rev22:21"], cwd=root / "usr/lib", check=True,
                            stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
    parsed = re.findall(r"^(\d?[A-Za-z]+)(\d+):\d+ (.+)$", verses, re.M)
    for book, in_book in itertools.groupby(parsed, key=lambda verse: verse[0]):
        chapters = itertools.groupby(in_book, key=lambda verse: verse[1])
        yield book, "\n\n".join("\n".join(v[2].strip() for v in c) for _, c in chapters) + "\n"


def dictionary(root):
    """WordNet's entries. A set of synonyms stands in the file under each of its words; only the
    entries that come first in all of theirs are kept, so that no definition is in both splits."""
    text = gzip.decompress((root / "usr/share/dictd/wn.dict.dz").read_bytes()).decode()
    for entry in re.findall(r"^(?!00-)\S.*\n(?:[ ].*\n|\n)+", text, re.M):
        word = entry.split("\n", 1)[0]
        if all(first == word for first in re.findall(r"\[syn:\s+\{([^}]*)\}", entry)):
            yield word, entry.rstrip() + "\n"


def man_pages(root):
    """Manual pages as a terminal shows them: no hyphenation, no justification, no overstriking."""
    groff = ["groff", "-man", "-Tascii", "-P-cbou", "-dAD=l", "-rHY=0"]
    for path in sorted((root / "usr/share/man").glob("man*/*.gz")):
        source = gzip.decompress(path.read_bytes())
        if path.is_symlink() or source.lstrip().startswith(b".so "):
            continue
        page = subprocess.run(groff, input=source, check=True, capture_output=True).stdout
        yield path.stem, re.sub(r"\n{3,}", "\n\n", page.decode("ascii", "ignore").strip()) + "\n"


def python(root):
    library = root / "usr/lib/python3.11"
    for path in sorted(library.rglob("*.py")):
        if "encodings" not in path.parts:  # mostly tables
            yield str(path.relative_to(library)), path.read_text("utf-8", "ignore")


def c_source(root):
    with tarfile.open(next((root / "usr/src/newlib").glob("*.tar.xz"))) as archive:
        for member in archive:
            parts = pathlib.PurePath(member.name).parts
            if parts[1:2] == ("newlib",) and member.name.endswith((".c", ".h")):
                yield member.name, archive.extractfile(member).read().decode("utf-8", "ignore")


DOMAINS = {"prose": prose, "dictionary": dictionary, "man": man_pages, "python": python,
           "c": c_source}


def is_validation(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % VALID_SHARE == 0


def write_domain(domain: str, documents, out: pathlib.Path) -> dict:
    """Writes both splits; a text that occurs twice counts once."""
    seen, facts = set(), {}
    splits = {"train": [], "valid": []}
    for name, text in documents:
        if (domain != "dictionary" and len(text) < MIN_DOCUMENT) or (
                domain != "prose" and len(text) > MAX_DOCUMENT) or text in seen:
            continue
        seen.add(text)
        splits["valid" if is_validation(name) else "train"].append({"name": name, "text": text})
    for split, entries in splits.items():
        with open(out / f"{domain}.{split}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
        facts[split] = {"documents": len(entries),
                        "bytes": sum(len(entry["text"].encode()) for entry in entries)}
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    out = parser.parse_args().out
    root = download(out)
    sources = {"packages": {}, "domains": {}}
    for package, licence in PACKAGES.items():
        deb = sorted((out / "deb").glob(f"{package}_*.deb"))[-1]
        sources["packages"][package] = {
            "version": urllib.parse.unquote(deb.stem.split("_")[1]), "licence": licence}
    for domain, documents in DOMAINS.items():
        sources["domains"][domain] = write_domain(domain, documents(root), out)
        print(domain, sources["domains"][domain], flush=True)
    (out / "sources.json").write_text(json.dumps(sources, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
