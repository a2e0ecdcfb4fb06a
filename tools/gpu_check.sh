#!/usr/bin/env bash
# What halflife does on a GPU, checked in one command and at most nine minutes; on any machine with a torch, without a network.
#
#   bash tools/gpu_check.sh --pack .whl   beforehand, with a network: the wheels of what may be missing there
#   bash tools/gpu_check.sh               on the machine with the GPU; --device cpu to try it elsewhere
#
# PYTHON names the Python that has torch (default: python3). No torch is installed, and nothing outside of a temporary folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" tools/gpu_check.py "$@"
