#!/usr/bin/env bash
# Environments of the libraries that the benchmarks stand beside, at the repository root.
#
#     bash benchmarks/peers/environments.sh
#
# Three, for no one holds them all: steering-vectors wants transformers 4, nnsight 0.8
# generates other texts with it than `generate` does, and nnterp wants nnsight 0.7.
# torch comes first and alone, so that what follows is satisfied with the build that is
# there. PYTHON names the interpreter, 3.11 or later.
set -euo pipefail
cd "$(dirname "$0")/../.."

make_environment() {
  local folder=".venv-peers-$1"
  shift
  "${PYTHON:-python3}" -m venv "$folder"
  "$folder/bin/pip" install --quiet torch==2.13.0
  "$folder/bin/pip" install --quiet "$@"
  "$folder/bin/pip" check
}

make_environment a steering-vectors==0.12.2 transformers==4.57.6 numpy==2.4.6
make_environment b repeng==0.4.0 pyvene==0.1.8 nnterp==1.3.0 nnsight==0.7.0 \
  transformers==5.23.0 accelerate==1.15.0 numpy==1.26.4
make_environment c nnsight==0.8.1 transformers==5.23.0 accelerate==1.15.0 numpy==2.4.6
