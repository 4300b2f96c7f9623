#!/bin/sh
# What is installed here, as CycloneDX 1.5 (JSON), to stdout: sbom.sh NAME [PYTHON]
# From dpkg's list, and of the packages that PYTHON finds; run in an image's build, as its last step.
set -eu
name=$1 python=${2:-/opt/venv/bin/python}
list() {
    dpkg-query --show --showformat '${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\n' | awk -F '\t' '
function escaped(word) { gsub(/%/, "%25", word); gsub(/\+/, "%2B", word); gsub(/:/, "%3A", word); return word }
/^ii *\t/ {
    purl = escaped($2) "@" escaped($3)
    printf "{\"type\":\"library\",\"name\":\"%s\",\"version\":\"%s\",\"purl\":\"pkg:deb/debian/%s?arch=%s\"}\n", $2, $3, purl, $4
}'
    if [ -x "$python" ]; then
        "$python" -P -c '
import importlib.metadata, json, re
found = {}
for one in importlib.metadata.distributions():
    name = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
    found[name] = one.version
for name, version in sorted(found.items()):
    purl = "pkg:pypi/%s@%s" % (name, version.replace("+", "%2B"))
    print(json.dumps({"type": "library", "name": name, "version": version, "purl": purl}))
'
    fi
}
printf '{"bomFormat":"CycloneDX","specVersion":"1.5","version":1,'
printf '"metadata":{"component":{"type":"container","name":"%s"}},"components":[\n' "$name"
list | sed '$!s/$/,/'
printf ']}\n'
