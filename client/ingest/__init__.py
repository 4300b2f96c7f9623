"""From the archive to a cohort: collect, group, classify, convert, de-identify, prepare.

What does each step: docs/methods/data.md, "From an archive to a cohort".
"""
