#!/usr/bin/env bash
# The demo, as the commands that anyone can type: hospitals are made, train together, are compared, and fill in a FLAIR.
set -euo pipefail
out=${1:-demo}
say() { printf '\n\033[1m== %s\033[0m\n' "$*" >&2; }

say "1/7 three hospitals, each without one modality (site-a no FLAIR, site-b no T1CE, site-c no T2)"
lacuna phantom "$out/world" --family glioma --sites 3

say "2/7 they train AMM-Diff together"
if [ -f "$out/runs/demo/config.json" ]; then
  lacuna simulate experiment=demo world="$out/world" runs="$out/runs" resume=demo
else
  lacuna simulate experiment=demo world="$out/world" runs="$out/runs" run=demo
fi

say "3/7 what the federation bought them, on held-out subjects of every site"
lacuna evaluate demo --runs "$out/runs" --every 2

say "4/7 the global model as a signed bundle"
lacuna export demo --runs "$out/runs" --key "$out/signing.key" --out "$out/bundle"

say "5/7 at a hospital: a missing FLAIR filled in from that bundle"
subject=$(find "$out/world/sites/site-a" -maxdepth 1 -name 'sub-*' | sort | head -n 1)
lacuna-site synthesize --bundle "$out/bundle" --trust "$out/signing.key.pub" --subject "$subject" --out "$out/filled-in" \
  --target FLAIR

say "6/7 what left that hospital"
lacuna-site ledger --state "$out/runs/demo/sites/site-a"

say "7/7 one page about the run"
lacuna report demo --runs "$out/runs" --out "$out/report.html"

cat >&2 <<END

Look at   $out/report.html                     the run on one page
          $out/world/contact-sheet.png         the hospitals' brains
          $out/runs/demo/evaluation/           scores as CSV, figures
          $out/filled-in/                      the synthetic FLAIR, its uncertainty, its sidecar, a preview
          mlflow ui --backend-store-uri sqlite:///$out/runs/mlflow.db

In a browser: lacuna open demo --runs $out/runs
END
