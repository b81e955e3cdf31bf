"""One runnable module a claim; each prints a table and, with --json, writes what it measured."""
