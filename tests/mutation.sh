#!/usr/bin/env bash
# Mutation testing: does a test fail when the code is broken? All mutants would take hours, so they
# are sampled. Needs `pip install cosmic-ray` beside the development extras, and Python 3.11.
#
#   tests/mutation.sh                          15 mutants of every module in mutation.toml
#   tests/mutation.sh loop methods/resd        modules whose path contains a word
#   tests/mutation.sh loop --sample 40 --seed 1
#
# Works on a copy: the working tree is not touched.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r "$here/src" "$here/tests" "$here/pyproject.toml" "$copy"
for extra in examples benchmarks docs README.md; do
    if [ -e "$here/$extra" ]; then cp -r "$here/$extra" "$copy"; fi
done
find "$copy" -name __pycache__ -type d -prune -exec rm -rf {} +
cd "$copy"
export PYTHONPATH="$copy/src:$copy/tests"
# Compiled files that are checked by content: a mutant may have the age and the size of the original.
python -m compileall -q --invalidation-mode checked-hash src tests
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
nice -n "${NICE:-10}" python tests/mutation.py "$@"
