"""From the archive to a cohort: collect, group, classify, convert, de-identify, prepare (specs/data.md §3)."""
