#!/usr/bin/env python3
"""Each rule of lint.py must catch what it is for, and nothing in a sound tree."""

import unittest

import lint

SOUND = {
    "io/README.md": "# io: bytes\n",
    "src/base/README.md": "# base: facts\n",
    "src/app/README.md": "# app: the person\n",
    "src/base/check.cc": '#include "base/check.h"\n\nvoid fail() { std::abort(); }\n',
    "io/file.h": '#pragma once\n\n#include "base/check.h"\n#include "io/engine.h"\n',
    "io/uring_ring.h": "#pragma once\n\n#include <liburing.h>\n",
    # What looks like output in a comment, a string or another word isn't.
    "io/file.cc": (
        "// printf(x) would be wrong, exit(1) too\n"
        'const char* text = "std::cout << 1; exit(1)";\n'
        "int n = snprintf(buffer, 4, nothing);\n"
        "int m = on_exit(1'000'000) + loop.exit(2);\n"
    ),
    "src/app/main.cc": '#include "runtime/session.h"\n\nint main() { std::exit(printf("")); }\n',
    "tests/io/file_test.cc": '#include <gtest/gtest.h>\n\n#include "io/file.h"\n#include "rig.h"\n',
    "tests/io/rig.h": "#pragma once\n",
    "CMakeLists.txt": "offstage_folder(model src/model offstage_io offstage_base\n  PkgConfig::X)\n",
}

# Rule, file, content: added to the sound tree, each must be caught by this rule and no other.
BROKEN = [
    ("include", "io/a.cc", '#include "cpu/kernels.h"\n'),
    ("include", "src/base/a.h", '#pragma once\n#include "io/file.h"\n'),
    ("include", "src/model/a.cc", '  #  include "runtime/session.h"\n'),
    ("include", "cache/a.cc", '#include "model/spec.h"\n'),
    ("include", "src/runtime/a.cc", '#include "app/terminal.h"\n'),
    ("include", "gpu/a.cu", '#include "cpu/kernels.h"\n'),
    ("include", "tests/io/a_test.cc", '#include "runtime/session.h"\n'),
    ("include", "bench/a_bench.cc", '#include "app/terminal.h"\n'),
    ("include", "io/b.cc", '#include "file.h"\n'),
    ("include", "src/runtime/b.cc", '#include "src/base/check.h"\n'),
    ("link", "CMakeLists.txt", "offstage_folder(io io offstage_base offstage_cpu)\n"),
    ("link", "cache/CMakeLists.txt", "offstage_folder(cache cache\n  offstage_runtime)\n"),
    ("vendor", "io/threads.cc", "#include <liburing.h>\n"),
    ("vendor", "cpu/dispatch.cc", "#include <immintrin.h>\n"),
    ("vendor", "gpu/device.h", "#pragma once\n#include <cuda_runtime.h>\n"),
    ("vendor", "src/runtime/a.cc", "#include <CLI/CLI.hpp>\n"),
    ("vendor", "io/a.cc", "#include <gtest/gtest.h>\n"),
    ("prints", "io/a.cc", "void f() { std::exit(1); }\n"),
    ("prints", "src/runtime/a.cc", 'void f() { fprintf(stderr, "x"); }\n'),
    ("prints", "cache/a.cc", "void f() { std::cerr << 1; }\n"),
    ("prints", "cpu/a.cc", "void f() { fmt::print(stdout, text); }\n"),
    ("prints", "src/model/a.cc", "void f() { exit(1); }\n"),
    ("size", "io/a.cc", "int a;\n" * 401),
    ("pragma", "io/a.h", "#ifndef A_H\n#define A_H\n#endif\n"),
    ("columns", "io/a.cc", "// " + "x" * 98 + "\n"),
    ("text", "io/a.cc", "int a; \n"),
    ("text", "scripts/a.sh", "\techo\n"),
    ("text", "io/a.cc", "int a;"),
    ("text", "src/app/report/a.js", "\tlet a;\n"),
    ("unfinished", "io/a.cc", "// TO" + "DO: later\n"),
    ("unfinished", "scripts/README.md", "FIX" + "ME\n"),
]


def rules(files, is_warning=False):
    return {finding.rule for finding in lint.lint(files) if finding.is_warning == is_warning}


class LintTest(unittest.TestCase):
    def tree(self, path, content):
        """The sound tree with one file more, in a folder that has its page."""
        folder = lint.folder_of(path)
        page = {f"{folder}/README.md": "# page\n"} if folder in lint.LAYERS else {}
        return {**SOUND, **page, path: content}

    def test_sound_tree_has_no_findings(self):
        self.assertEqual(lint.lint(SOUND), [])

    def test_each_broken_file_is_caught_by_its_rule(self):
        for rule, path, content in BROKEN:
            with self.subTest(rule=rule, path=path):
                self.assertEqual(rules(self.tree(path, content)), {rule})

    def test_folder_without_page(self):
        self.assertEqual(rules({**SOUND, "cpu/a.cc": "int a;\n"}), {"page"})

    def test_long_function_is_a_warning(self):
        content = "namespace a {\nvoid f() {\n" + "  g();\n" * 70 + "}\n}\n"
        tree = self.tree("io/a.cc", content)
        self.assertEqual((rules(tree), rules(tree, is_warning=True)), (set(), {"size"}))

    def test_listed_file_may_not_grow_nor_stay_listed_when_split(self):
        for path, limit in lint.LONGER_FILES.items():
            for lines, expected in ((limit, set()), (limit + 1, {"size"}), (10, {"size"})):
                with self.subTest(path=path, lines=lines):
                    self.assertEqual(rules({**SOUND, path: "int a;\n" * lines}), expected)

    def test_functions_are_measured_by_their_braces(self):
        code = "struct S {\n  int f(int a = {}) {\n    if (a) {\n    }\n  }\n};\nint g()\n{\n}\n"
        self.assertEqual(list(lint.function_lengths(code)), [(2, 4), (7, 3)])

    def test_lines_of_findings(self):
        tree = self.tree("io/a.cc", "\n\nvoid f() { std::abort(); }\n")
        self.assertEqual([str(finding) for finding in lint.lint(tree)],
                         ["io/a.cc:3: error: only src/app prints or ends the process [prints]"])


if __name__ == "__main__":
    unittest.main()
