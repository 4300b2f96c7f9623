#!/bin/sh
# What is installed here, as CycloneDX 1.5 (JSON), to stdout: sbom.sh NAME [PYTHON]
# From dpkg's list, and of the packages that PYTHON finds; run in an image's build, as its last step.
set -eu
name=$1 python=${2:-/opt/venv/bin/python}
escape() { printf '%s' "$1" | sed 's/%/%25/g; s/+/%2B/g; s/:/%3A/g'; }
list() {
    dpkg-query --show --showformat '${db:Status-Abbrev}\t${Package}\t${Version}\t${Architecture}\n' | sed -n 's/^ii *\t//p' |
        while IFS="$(printf '\t')" read -r package version architecture; do
            purl=$(printf '%s@%s' "$(escape "$package")" "$(escape "$version")")
            printf '{"type":"library","name":"%s","version":"%s","purl":"pkg:deb/debian/%s?arch=%s"}\n' \
                "$package" "$version" "$purl" "$architecture"
        done
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
